from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import slimline
from slimline import job as main_job
from slimline.core.progress import Silent
from slimline.core.request import Request


def test_an_interrupt_before_anything_was_measured_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    job: Any = SimpleNamespace(journal=contextlib.nullcontext(), progress=SimpleNamespace(note=said.append))

    def interrupted(job: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_job, "at_work", lambda job: contextlib.nullcontext())
    monkeypatch.setattr(main_job, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main_job._carried_out(job)
    assert len(said) == 1 and "--resume" in said[0]


def test_an_interrupt_after_the_certificate_keeps_it(rings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that measured references for twenty minutes lost its certificate to Ctrl-C, and was finished anew without one."""

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_job, "references", interrupted)
    budget = slimline.Budget(max_drop="3%", minimize="size")
    request = Request(out=tmp_path / "build", seconds=20, methods=("weight_only",), budget=budget)
    report = main_job.compress_request(rings, request, Silent())
    assert report is not None and report.certificate is not None and report.verdict in ("pass", "fail", "inconclusive") and report.interrupted
    assert report.references == {} and any("held against: the run was interrupted" in n for n in report.not_checked)
    assert (tmp_path / "build" / "model.onnx").is_file() and (tmp_path / "build" / "report.html").is_file()
