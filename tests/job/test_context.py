from __future__ import annotations

from pathlib import Path

import pytest

from slimline.core.request import Request
from slimline.errors import OutputError
from slimline.job.context import STATE, check_directory
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
