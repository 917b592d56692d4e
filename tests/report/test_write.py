from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from slimline.core.result import Report
from slimline.errors import OutputError
from slimline.report.write import write_outputs


def test_the_manifest_holds_the_digest_of_every_file(report: Report, tmp_path: Path) -> None:
    write_outputs(tmp_path, report, {"model.onnx": b"model", "plan.json": b"{}"})
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"model.onnx", "plan.json", "report.json", "report.md", "report.html"}
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest for name, digest in manifest["files"].items())
    assert {p.name for p in tmp_path.iterdir()} == {*manifest["files"], "manifest.json"}


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "is full"), (errno.EACCES, "cannot be written")])
def test_a_disk_that_refuses_leaves_nothing_half_written(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    calls = 0

    def refuse(handle: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=words):
        write_outputs(tmp_path, report, {"model.onnx": b"model"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named_with_its_remedy_and_what_stood_there_stays(report: Report, tmp_path: Path) -> None:
    write_outputs(tmp_path, report, {"model.onnx": b"first"})
    (tmp_path / ".model.onnx.part").symlink_to("/dev/full")  # a device whose every write fails for lack of space
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.is_symlink()}
    with pytest.raises(OutputError, match="Free some space"):
        write_outputs(tmp_path, report, {"model.onnx": b"second"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_manifest_never_stands_beside_files_of_another_run(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_outputs(tmp_path, report, {"model.onnx": b"first"})
    replace, calls = os.replace, []

    def stop_at_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_at_second)
    with pytest.raises(OutputError, match="cannot be written"):
        write_outputs(tmp_path, report, {"model.onnx": b"second"})
    assert (tmp_path / "model.onnx").read_bytes() == b"second" and not (tmp_path / "manifest.json").exists()


def test_the_manifest_tells_versions_from_the_machine(report: Report, tmp_path: Path) -> None:
    write_outputs(tmp_path, report, {})
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seed"] == report.seed and set(manifest["machine"]) == {"machine", "processor", "cores"}
    assert manifest["versions"]["torch"] == "2.13.0" and not manifest["versions"].keys() & manifest["machine"].keys()
