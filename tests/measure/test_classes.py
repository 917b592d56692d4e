"""Drops by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimline.measure.classes import class_drops, slice_drops
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


def test_slices_of_all_ways_share_the_five_percent_and_the_worst_comes_first() -> None:
    labels = {"light": ["night" if i < 100 else "day" for i in range(1000)], "camera": [str(i % 3) for i in range(1000)]}
    worse = torch.ones(1000)
    worse[:30] = 0
    drops = slice_drops(torch.ones(1000), worse, labels)
    assert drops[0].label == "light: night" and len(drops) == 5 and all(d.of == 5 for d in drops)
    assert drops[0].observed == pytest.approx(0.3) and drops[0].samples == 100
    alone = slice_drops(torch.ones(1000), worse, {"light": labels["light"]})[0]
    assert drops[0].lower_95 < alone.lower_95 and drops[0].upper_95 == alone.upper_95  # two share what five share; upper limits share nothing
    assert slice_drops(torch.ones(1000), worse, labels, most=1) == drops[:1]


def test_a_slice_of_classes_has_the_limits_of_the_classes() -> None:
    labels = torch.arange(300) % 3
    a, b = torch.ones(300), (torch.arange(300) % 7 > 0).float()
    by_class = {str(d.label): (d.observed, d.lower, d.upper) for d in class_drops(a, b, labels)}
    by_slice = {d.label: (d.observed, d.lower_95, d.upper_95) for d in slice_drops(a, b, {"": [str(v) for v in labels.tolist()]})}
    assert by_class == by_slice
