"""Drops by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimline.measure.classes import class_drops
from slimline.numerics.statistics import median_limits


def test_a_ruined_class_stands_out_and_the_others_do_not() -> None:
    labels = torch.arange(1000) % 10
    baseline, compressed = torch.ones(1000), torch.ones(1000)
    compressed[(labels == 3).nonzero()[:40]] = 0
    drops = class_drops(baseline, compressed, labels)
    assert [d.label for d in drops if d.lower > 0.1] == [3]
    assert drops[3].observed == pytest.approx(0.4) and drops[3].samples == 100
    assert all(d.upper < 0.05 for d in drops if d.label != 3)


def test_lower_limits_share_the_five_percent_among_the_classes() -> None:
    # Ten classes that each lose exactly 10 %: a limit at 95 % each would accuse one of them in up to 40 % of all cases.
    draw = np.random.default_rng(0)
    labels = torch.arange(1000) % 10
    accused = 0
    for _ in range(100):
        compressed = torch.from_numpy((draw.random(1000) > 0.1).astype(np.float32))
        accused += any(d.lower > 0.1 for d in class_drops(torch.ones(1000), compressed, labels))
    assert accused <= 5 + 2.33 * (100 * 0.05 * 0.95) ** 0.5  # one percent of runs of a right test would fail here


def test_scores_between_zero_and_one_are_bounded_too() -> None:
    labels = torch.arange(400) % 2
    a, b = torch.full((400,), 0.9), torch.full((400,), 0.9)
    b[labels == 1] = 0.5
    zero, one = class_drops(a, b, labels)
    assert zero.observed == 0 and zero.lower <= 0 <= zero.upper
    assert 0.3 < one.lower < one.observed < one.upper


def test_median_limits_hold_their_level() -> None:
    draw = np.random.default_rng(1)
    beyond = sum(median_limits(draw.lognormal(size=11))[0] > 1.0 for _ in range(2_000))
    assert beyond / 2_000 <= 0.05
    assert median_limits([5, 1, 3, 2, 4]) == (1.0, 5.0)
