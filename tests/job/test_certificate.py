"""Which finalists are tested on the holdout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slimline.core.budget import Budget
from slimline.job.certificate import order


def finalist(digest: str, size: float, drop: float) -> Any:
    """Of a size, with an expected drop; one answer in twenty is not the original's."""
    scores = torch.ones(5_000)
    scores[:250] = 0
    measured = SimpleNamespace(quality=0.9 - drop, cost=lambda quantity: size)
    return SimpleNamespace(trial=SimpleNamespace(plan=SimpleNamespace(digest=digest), measurement=measured, fidelity=None, violations=()), scores=scores)


def opened_with(*digests: str) -> tuple[Any, Any]:
    """A job that allows one point, whose holdout was opened with these finalists, and what it found. The original has 1 MB."""
    journal = SimpleNamespace(last=lambda kind: {"sequence": list(digests)} if digests and kind == "certified" else None)
    data = SimpleNamespace(data=lambda split: range(10_000))
    request = SimpleNamespace(budget=Budget(max_drop="1%", minimize="size"))
    job = SimpleNamespace(journal=journal, source=data, request=request, evaluation=range(5_000), classes=True)
    base = SimpleNamespace(quality=0.9, cost=lambda quantity: 1e6)
    return job, SimpleNamespace(baseline_measurement=base, baseline_scores=torch.ones(5_000), recovered={}, small_drops={}, training={}, trials=[])


@pytest.mark.parametrize("digests", [(), ("sure", "gone")])
def test_it_goes_from_what_is_sure_to_what_is_small(digests: tuple[str, ...]) -> None:
    job, found = opened_with(*digests)
    known = [finalist("small", 2e5, 0.004), finalist("sure", 4e5, -0.005)]
    assert [f.trial.plan.digest for f in order(job, found, known)] == ["sure", "small"]


def test_a_run_that_goes_on_keeps_the_sequence_that_the_holdout_was_opened_for() -> None:
    """With scores that came out a little differently the second time another sequence would be chosen, by whoever has seen the holdout."""
    job, found = opened_with("small")
    known = [finalist("small", 2e5, 0.004), finalist("sure", 4e5, -0.005)]
    assert [f.trial.plan.digest for f in order(job, found, known)] == ["small"]
