"""Successive halving keeps what will pass, and prefers what is smallest among it."""

from __future__ import annotations

from slimline.core.plan import Fingerprint, Plan
from slimline.search.race import Entry, Rung, race, rungs

MODEL = Fingerprint(architecture="a", weights="w")


def entries(count: int) -> list[Entry]:
    return [Entry(Plan(model=MODEL, seed=i), objective=float(count - i)) for i in range(count)]


def test_no_more_steps_are_spent_than_were_given() -> None:
    for candidates in (1, 2, 4, 6):
        assert sum(r.entries * r.steps for r in rungs(1000, candidates)) <= 1000


def test_the_best_objective_within_the_allowance_wins() -> None:
    field = entries(4)  # seed 3 has the best objective and the largest drop
    floor = {0: 0.001, 1: 0.004, 2: 0.008, 3: 0.05}

    def train(entry: Entry, rung: Rung) -> float:
        return floor[entry.plan.seed] + 0.02 / (entry.steps + rung.steps) ** 0.5

    last = race(field, rungs(4000, 4), train, allowed=0.012)
    assert last[0].plan.seed == 2


def test_a_race_cut_off_by_the_clock_returns_what_was_trained() -> None:
    calls = 0

    def train(entry: Entry, rung: Rung) -> float | None:
        nonlocal calls
        calls += 1
        return 0.01 if calls <= 2 else None

    assert len(race(entries(4), rungs(1000, 4), train, allowed=0.02)) == 2


def test_an_expected_gain_is_not_scaled_away() -> None:
    entry = Entry(Plan(model=MODEL), 1.0, [(100, -0.01)])
    assert entry.expected(1000) == -0.01
