from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.result import Comparison, Report
from slimline.job import several


def test_what_is_finished_is_told_when_a_later_target_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Comparison] = []

    def compress(source: Any, request: Request, progress: Any) -> Report:
        if request.target == "torch":
            raise KeyboardInterrupt
        return Report.model_construct(target=request.target, interrupted=False)

    monkeypatch.setattr(several, "compress_request", compress)
    monkeypatch.setattr(several, "write_comparison", lambda directory, found: told.append(found))
    source: Any = None
    with pytest.raises(KeyboardInterrupt):
        several.compress_several(source, Request(out=tmp_path / "build"), ("onnxruntime", "torch"), lambda target: Silent())
    assert [[r.target for r in found.runs] for found in told] == [["onnxruntime"]]
