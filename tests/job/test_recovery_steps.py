"""How long is trained: by what a step of a candidate takes, decided once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from slimline.core.result import Schedule
from slimline.core.samples import Samples
from slimline.job import recovery
from slimline.job.recovery import _lengthen

PLANNED = 2000
SECONDS = 600.0


def trial(macs: int, *, structure: bool = True) -> Any:
    plan = SimpleNamespace(stage=lambda name: ("decision",) if structure else (), macs=macs)
    return SimpleNamespace(plan=plan, seconds=4.0, measurement=SimpleNamespace(macs=macs))


def lengthened(monkeypatch: pytest.MonkeyPatch, trials: list[Any], step: float, kept: dict[str, Any] | None = None) -> tuple[int, list[int], list[Any]]:
    """Steps, the multiply-adds of what was timed, and events. The original's step takes 0.12 s, and training begins after 80 s."""
    timed: list[int] = []
    events: list[Any] = [] if kept is None else [kept]
    journal = SimpleNamespace(
        last=lambda kind: {"step": 0.12} if kind == "schedule" else (events or [None])[-1],
        append=lambda kind, data, elapsed: events.append(data),
        elapsed=lambda kind: 80.0 - sum(t.seconds for t in trials),
    )

    def structure(plan: Any) -> nn.Module:
        timed.append(plan.macs)
        return nn.Linear(2, 2)

    monkeypatch.setattr(recovery, "seconds_per_step", lambda *given: step)
    job = SimpleNamespace(
        journal=journal,
        clock=SimpleNamespace(seconds=SECONDS, elapsed=80.0, left=520.0),
        train=Samples.of(torch.zeros(45_000, 2)),
        example=Samples.of(torch.zeros(1, 2)),
        model=nn.Linear(2, 2),
        request=SimpleNamespace(train_device="cpu"),
        progress=SimpleNamespace(stage=lambda *given: None),
        spent={},
    )
    schedule = Schedule(seconds=SECONDS, samples_loss=256, candidates=20, recovery_steps=PLANNED, finalists=3)
    found = SimpleNamespace(trials=trials, schedule=schedule, batch=128, bf16=False, workshop=SimpleNamespace(structure=structure))
    _lengthen(cast(Any, job), cast(Any, found), trials)
    return found.schedule.recovery_steps, timed, events


def test_the_middle_one_of_the_candidates_with_a_structure_of_their_own_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, timed, events = lengthened(monkeypatch, [trial(50, structure=False), trial(24), trial(40), trial(30)], 0.06)
    assert timed == [30] and events == [{"steps": steps}]
    assert 2 * PLANNED < steps < 520 / 0.06


def test_a_slower_step_than_the_originals_takes_none_away(monkeypatch: pytest.MonkeyPatch) -> None:
    slower, timed, _ = lengthened(monkeypatch, [trial(30)], 0.5)
    same, not_timed, _ = lengthened(monkeypatch, [trial(40, structure=False)], 0.06)
    assert timed and not not_timed and slower == same >= PLANNED


def test_a_resumed_run_trains_as_long_and_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, timed, events = lengthened(monkeypatch, [trial(30)], 0.06, kept={"steps": 2500})
    assert steps == 2500 and not timed and len(events) == 1
