from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from slimline import job as main_job


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
