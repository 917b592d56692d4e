"""Latencies that are taken side by side, on a machine that others use."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

from slimline.targets import _timing


def test_two_that_are_timed_together_are_told_apart_while_half_of_all_calls_are_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated clock: the machine gets slower and faster for 50 to 300 ms at a time, and half of all calls are interrupted for up to twice their time."""
    draw = random.Random(0)
    clock, until, speed = 0.0, 0.0, 1.0

    def call(seconds: float) -> None:
        nonlocal clock, until, speed
        if clock > until:
            until, speed = clock + draw.uniform(0.05, 0.3), draw.choice((1.0, 0.5))
        clock += (seconds + (draw.random() < 0.5) * draw.uniform(0, 5e-4)) / speed

    monkeypatch.setattr(_timing, "time", SimpleNamespace(perf_counter=lambda: clock))
    ratios, medians = [], []
    for _ in range(20):
        first, second = _timing.interleaved([lambda: call(2.5e-4), lambda: call(2.4e-4)], seconds=0.4, threads=1, batch=1)
        ratios.append(second.median / first.median)
        medians.append(first.median)
        assert first.runs >= 20 and first.p95 > first.median
    assert np.mean(ratios) == pytest.approx(0.96, abs=0.01)
    assert np.std(ratios) < 0.02
    assert np.std(medians) > 0.1 * np.mean(medians), "while the first one's own median goes up and down with the machine"


@pytest.mark.parametrize(("seconds", "rounds"), [(0.25, 5), (0.03, 2)])
def test_a_call_that_takes_long_is_made_a_few_times(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    """An interpreter of microcontrollers takes half a second for an image, and every layer is timed, for which a glance is enough."""
    clock = 0.0
    made = [0, 0]

    def call(which: int) -> None:
        nonlocal clock
        made[which] += 1
        clock += 0.5 + 0.1 * which

    monkeypatch.setattr(_timing, "time", SimpleNamespace(perf_counter=lambda: clock))
    first, second = _timing.interleaved([lambda: call(0), lambda: call(1)], seconds=seconds, threads=1, batch=1)
    assert made == [1 + rounds, 1 + rounds] and first.runs == second.runs == rounds, "one to warm up, and nothing that is not counted"
    assert (first.median, second.median) == pytest.approx((500, 600))
