from __future__ import annotations

from slimline.measure.plain import Candidate, choose

SMALL = Candidate("small", 80, 2.0, 0.895)
FAST = Candidate("fast", 100, 1.0, 0.90)
WRONG = Candidate("wrong", 10, 0.1, 0.70)


def test_the_smallest_and_the_fastest_within_one_point_count() -> None:
    choice = choose([WRONG, SMALL, FAST], 0.90)
    assert choice is not None
    assert (choice.smallest, choice.fastest, choice.within) == (SMALL, FAST, True)


def test_exactly_one_point_is_within() -> None:
    edge = Candidate("edge", 1, 1.0, 0.89)
    choice = choose([edge], 0.90)
    assert choice is not None
    assert choice.within


def test_without_one_that_keeps_the_quality_the_best_stands_and_it_is_said() -> None:
    choice = choose([WRONG, Candidate("worse", 5, 0.05, 0.60)], 0.90)
    assert choice is not None
    assert (choice.smallest, choice.fastest, choice.within) == (WRONG, WRONG, False)


def test_metrics_outside_the_unit_interval_take_one_percent_of_the_baseline() -> None:
    near, far = Candidate("near", 9, 1.0, -50.4), Candidate("far", 1, 1.0, -51.0)
    choice = choose([near, far], -50.0)
    assert choice is not None
    assert choice.smallest is near


def test_without_data_every_variant_counts() -> None:
    choice = choose([Candidate("a", 2, 1.0, None), Candidate("b", 1, 2.0, None)], None)
    assert choice is not None
    assert (choice.smallest.label, choice.fastest.label) == ("b", "a")


def test_no_candidates_no_choice() -> None:
    assert choose([], 0.9) is None
