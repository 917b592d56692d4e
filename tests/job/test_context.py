from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimline.core.budget import Budget
from slimline.core.plan import Fingerprint
from slimline.core.request import Request
from slimline.errors import JournalError, OutputError, UsageError
from slimline.job.context import STATE, _header, check_directory
from slimline.store.journal import Journal


@pytest.mark.parametrize("below", ["", "onnxruntime"])
def test_force_replaces_no_run_that_is_going_on(tmp_path: Path, below: str) -> None:
    out = tmp_path / "build"
    (out / STATE).mkdir(parents=True)
    with Journal.open(out / below / STATE, {"job": "a"}) as journal:
        with pytest.raises(OutputError, match="Another run is writing"):
            check_directory(Request(out=out, force=True))
        assert journal.path.exists()
    check_directory(Request(out=out, force=True))
    assert not (out / STATE).exists()


def test_what_was_asked_otherwise_is_named_as_it_is_typed(tmp_path: Path) -> None:
    mark = Fingerprint(architecture="a", weights="w")
    source: Any = SimpleNamespace(name="task")
    before, now = Request(seconds=10), Request(seconds=20, budget=Budget(size_bytes=300, max_drop="2%"))
    Journal.open(tmp_path, _header(source, before, mark)).close()
    with pytest.raises(JournalError, match=r"other arguments \(--max-drop, --max-size, --time\)"):
        Journal.open(tmp_path, _header(source, now, mark), resume=True)
    with pytest.raises(JournalError, match=r"other arguments \(its weights\)"):
        Journal.open(tmp_path, _header(source, before, mark.model_copy(update={"weights": "v"})), resume=True)
    Journal.open(tmp_path, _header(source, before, mark), resume=True).close()


def test_there_is_nothing_to_resume_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        check_directory(Request(out=tmp_path / "build", resume=True))
    assert not (tmp_path / "build").exists()
