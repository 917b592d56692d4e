"""What candidates are looked for by, and what their loss is."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from slimline.core.budget import Budget
from slimline.core.result import Schedule
from slimline.core.samples import Samples
from slimline.job.search import _more, _sought, divergence_of, search
from slimline.search.schedule import Clock

REFERENCE = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Shifted:
    """A runtime in which every output comes out larger by one."""

    def run(self, artifact: Any, samples: Samples, *, threads: int) -> tuple[torch.Tensor, ...]:
        return (REFERENCE + 1.0,)


def test_a_candidate_of_an_encoder_loses_relative_squared_error() -> None:
    samples = Samples.of(torch.zeros(16, 1))
    lost = {c: divergence_of(cast(Any, SimpleNamespace(target=Shifted(), classes=c)), cast(Any, None), samples, REFERENCE) for c in (True, False)}
    assert lost[True] == pytest.approx(0, abs=1e-5)
    assert lost[False] == pytest.approx(REFERENCE.numel() / float((REFERENCE**2).sum()), rel=1e-5)


class Unlimited:
    """A strategy that finds nothing within a limit on the latency."""

    def propose(self, space: Any, budget: Budget, trials: Any) -> str | None:
        return None if budget.latency_ms is not None else "a plan"


def test_where_no_candidate_keeps_the_limits_the_closest_is_looked_for() -> None:
    said: list[str] = []
    space = SimpleNamespace(nothing=(), costs=lambda choice: {"size": 1000.0, "latency": 5.0})
    found = cast(Any, SimpleNamespace(space=space))
    out_of_reach = Budget(size_bytes=900, latency_ms=0.001, max_drop="2%")
    for asked in (Budget(size_bytes=900), out_of_reach):
        job = cast(Any, SimpleNamespace(request=SimpleNamespace(budget=asked), note=said.append))
        sought = _sought(job, found, cast(Any, Unlimited()))
        assert sought == (asked if asked != out_of_reach else Budget(max_drop="2%", minimize="latency"))
    assert len(said) == 1 and "least latency" in said[0]


def test_candidates_are_added_once_and_a_resumed_run_has_as_many() -> None:
    """MiniLM's were probed at 164 s with second-order rounding, took 62, and the four of them left a gap where the answer lay."""
    events: list[dict[str, Any]] = []
    schedule = Schedule(seconds=1200, samples_loss=16, candidates=4, recovery_steps=25, finalists=1)
    kept = {"schedule": schedule.model_dump(), "bf16": False, "batch": 64, "candidate": 164.0}
    journal = SimpleNamespace(last=lambda kind: (events or [kept])[-1], append=lambda kind, data, elapsed: events.append(data))
    job = cast(Any, SimpleNamespace(journal=journal, clock=SimpleNamespace(elapsed=0.0)))
    found = cast(
        Any,
        SimpleNamespace(
            schedule=schedule, space=SimpleNamespace(steps=25), trials=[SimpleNamespace(seconds=s, origin="allocate") for s in (75.0, 63.0, 52.0, 60.0)]
        ),
    )
    assert _more(job, found) and found.schedule.candidates == 8
    assert not _more(job, found) and len(events) == 1
    assert Schedule.model_validate(events[0]["schedule"]) == found.schedule and events[0]["batch"] == 64


@pytest.mark.parametrize(("steps", "elapsed", "more"), [(25, 300.0, 0), (0, 300.0, 8), (0, 760.0, 0)])
def test_where_nothing_is_trained_candidates_take_the_time_that_training_would(steps: int, elapsed: float, more: int) -> None:
    """EfficientNet-Lite0's twelve candidates were done after the half of ten minutes, and nothing else used the rest."""
    events: list[dict[str, Any]] = []
    schedule = Schedule(seconds=1200, samples_loss=16, candidates=4, recovery_steps=steps, finalists=1)
    kept = {"schedule": schedule.model_dump(), "candidate": 60.0}
    journal = SimpleNamespace(last=lambda kind: (events or [kept])[-1], append=lambda kind, data, elapsed: events.append(data))
    job = cast(Any, SimpleNamespace(journal=journal, clock=SimpleNamespace(elapsed=elapsed, seconds=1200.0)))
    found = cast(Any, SimpleNamespace(schedule=schedule, space=SimpleNamespace(steps=steps), trials=[SimpleNamespace(seconds=50.0, origin="allocate")] * 4))
    assert _more(job, found) == (more > 0) and found.schedule.candidates == 4 + more


def test_where_the_strategy_ended_early_nothing_is_added_later_either() -> None:
    """A cautious candidate made the count full, and a resumed run went on where the first had ended."""
    events: list[dict[str, Any]] = []
    schedule = Schedule(seconds=1200, samples_loss=16, candidates=4, recovery_steps=0, finalists=1)
    kept = {"schedule": schedule.model_dump(), "bf16": False, "batch": 64, "candidate": 164.0}
    job = cast(
        Any,
        SimpleNamespace(
            journal=SimpleNamespace(last=lambda kind: (events or [kept])[-1], append=lambda k, data, e: events.append(data)),
            clock=SimpleNamespace(elapsed=1200.0, seconds=1200.0),
        ),
    )
    trials = [SimpleNamespace(seconds=60.0, origin=o) for o in ("allocate", "allocate", "allocate", "cautious")]
    found = cast(Any, SimpleNamespace(schedule=schedule, space=SimpleNamespace(steps=0), trials=trials))
    for _ in range(2):
        assert not _more(job, found) and found.schedule.candidates == 4


@pytest.mark.parametrize("tried", [0, 1])
def test_what_a_resumed_run_prepares_again_costs_no_candidates(monkeypatch: pytest.MonkeyPatch, tried: int) -> None:
    """A run of 40 seconds was killed after 21, took 12 to prepare, and had no time for its fourth candidate."""
    clock = Clock(40.0, spent=21.0 + 12.0)
    journal = SimpleNamespace(events=lambda kind: range(tried), spent=21.0)
    request = SimpleNamespace(plan=None, strategy="allocate", budget=Budget())
    job = cast(Any, SimpleNamespace(journal=journal, clock=clock, request=request, model=None))
    found = cast(Any, SimpleNamespace(trials=[], schedule=SimpleNamespace(candidates=4), space=None))
    done = SimpleNamespace(name="allocate", propose=lambda *given: None)
    for name, fake in {
        "Trial": SimpleNamespace(model_validate=lambda event: SimpleNamespace(measurement=None, origin="allocate")),
        "find": lambda kind, name: lambda count: done,
        "_sought": lambda *given: Budget(),
        "loss_samples": lambda *given: None,
        "original_answers": lambda *given: None,
        "_more": lambda *given: False,
    }.items():
        monkeypatch.setattr(import_module("slimline.job.search"), name, fake)
    search(job, found)
    assert clock.elapsed == pytest.approx(21.0 if tried else 33.0, abs=0.5)
