"""Malicious and damaged files: each a typed error within ten seconds, nothing run, nothing read or written outside."""

from __future__ import annotations

import importlib.util
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from support import hostile_folders, hostile_onnx, hostile_others
from support.hostile import Case, raw
from support.hostile_onnx import good

from slimline.errors import ModelError, SlimlineError
from slimline.sources import _child
from slimline.sources.dispatch import open_source

SECONDS = 10.0
CORPUS: dict[str, Case] = {}
for kind, corpus in (("onnx", hostile_onnx.CORPUS), ("folder", hostile_folders.CORPUS), ("other", hostile_others.CORPUS)):
    CORPUS |= {f"{kind}:{name}": case for name, case in corpus.items()}
if importlib.util.find_spec("h5py") is not None:
    from support import hostile_keras

    CORPUS |= {f"keras:{name}": case for name, case in hostile_keras.CORPUS.items()}
ENDED = ("kept its parser waiting", "was stopped after", "more than 1,073,741,824 bytes of memory")  # by a limit, which no case of the corpus may need


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below; of files, when they were written and their sizes."""
    return {str(p.relative_to(folder)): (0, 0) if p.is_dir() else (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def refused(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a case; its file lies in ``folder / "inside"``, and nothing in ``folder`` has changed then, nor is left of ours in ``TMPDIR``."""
    temporary = folder.with_name(f"{folder.name}-temporary")
    for inner in (folder / "inside", folder / "elsewhere", temporary):
        inner.mkdir(parents=True)
    path = CORPUS[name](folder / "inside")
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = contents(folder)
    with pytest.raises(SlimlineError) as caught:
        open_source(str(path)).model()
    assert contents(folder) == before and not list(folder.rglob("CODE_RAN")) and not list(temporary.glob("slimline-*")), name
    said = str(caught.value)
    assert len(said) < 1500 and "Traceback" not in said and "is not installed" not in said, said
    return said


def in_this_process(function: str, path: Path, **request: Any) -> dict[str, Any]:
    """The child's work without the child, which takes half a second to start."""
    import importlib

    module, _, name = function.partition(":")
    _child.regular(path)
    try:
        found: dict[str, Any] = getattr(importlib.import_module(module), name)({**request, "path": str(path)})
        return found
    except SlimlineError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def test_corpus_is_as_large_as_promised() -> None:
    assert len(CORPUS) >= 110  # and 30 more with h5py


@pytest.mark.parametrize("name", list(CORPUS))
def test_hostile_file_is_a_typed_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "parse", in_this_process)
    started = time.monotonic()
    refused(name, tmp_path, monkeypatch)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(("name", "says"), hostile_folders.SAYS.items())
def test_hostile_folder_is_refused_for_what_is_wrong_with_it(tmp_path: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "parse", in_this_process)
    with pytest.raises(ModelError, match=says):
        open_source(str(hostile_folders.CORPUS[name](tmp_path)))


def spent() -> float:
    """Seconds of processor time of this process and of the children that have ended: a busy machine does not count."""
    return sum(u.ru_utime + u.ru_stime for u in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


@pytest.mark.timeout(1800)
def test_whole_corpus_in_the_real_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = []
    for place, name in enumerate(CORPUS):
        before = spent()
        said = refused(name, tmp_path / str(place), monkeypatch)
        if spent() - before > SECONDS or any(e in said for e in ENDED):
            wrong.append((name, spent() - before, said))
    assert not wrong


@pytest.mark.parametrize(("does", "says"), [
    ("os.abort()", r"crashed \(SIGABRT\)"),
    ("[bytearray(2**28) for _ in range(40)]", "takes more than 1,073,741,824 bytes of memory"),
    ("exec('while True: pass')", "stopped after 1 s of processor time"),
    ("os._exit(3)", "ended with status 3"),
    ("__import__('time').sleep(100)", "kept its parser waiting for more than 3 s"),
    ("1 / 0", "cannot be read: ZeroDivisionError"),
])  # fmt: skip
def test_what_becomes_of_the_child_is_a_typed_error(tmp_path: Path, does: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through ``eval`` of the child's own, since no parser is known to crash."""
    monkeypatch.setattr(_child, "STARTED", f"import os, sys; sys.path.insert(0, sys.argv[1]); from slimline.sources import _child, _onnx_parse; "
                        f"_onnx_parse.parse = lambda request: ({does}, dict())[1]; _child.serve()")  # fmt: skip
    path = raw(tmp_path, b"x")
    with pytest.raises(ModelError, match=says):
        _child.parse("slimline.sources._onnx_parse:parse", path, seconds=1 if says.endswith((" s", "processor time")) else _child.CPU_SECONDS)


def test_child_imports_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw(tmp_path, good(tmp_path))
    monkeypatch.setattr(_child, "STARTED", _child.STARTED + "; sys.exit('torch' in sys.modules and 7)")
    answer = _child.parse("slimline.sources._onnx_parse:parse", path, tensors=str(tmp_path / "t"))
    assert answer["graph"]["nodes"][0]["op"] == "MatMul"
