"""Successive halving keeps what will pass, prefers what is smallest among it, and looks between what was trained."""

from __future__ import annotations

import math

import numpy as np
import pytest

from slimline.core.plan import Fingerprint, Plan
from slimline.search.race import Bar, Entry, Rung, bottom_of, forecast, race, rungs, worth

MODEL = Fingerprint(architecture="a", weights="w")
ALLOWED = 0.005


def entries(*untrained: float) -> list[Entry]:
    """The more is lost before training, the better the objective: about as it is on ResNet-20."""
    return [Entry(Plan(model=MODEL, seed=i), (0.001 / drop) ** 0.3, drop) for i, drop in enumerate(untrained)]


def bar(allowed: float) -> Bar:
    return Bar(allowed, 0.2 * allowed, 1.0)


def test_no_more_steps_are_spent_than_were_given() -> None:
    for candidates in (1, 2, 4, 6):
        assert sum(r.entries * r.steps for r in rungs(1000, candidates)) <= 1000


def test_the_best_objective_within_the_allowance_wins() -> None:
    field = entries(0.01, 0.02, 0.04, 0.2)
    floor = {0: 0.001, 1: 0.004, 2: 0.008, 3: 0.05}

    def train(entry: Entry, rung: Rung) -> float:
        return floor[entry.plan.seed] + 0.02 / (entry.steps + rung.steps) ** 0.5

    done = race(field, rungs(4000, 4), train, bar(0.012))
    assert next(e for e in done if e.drops[-1][1] <= 0.012).plan.seed == 2


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("steps", [400, 1000, 4000])
def test_the_winner_lies_near_the_edge_whatever_training_brings_back(rate: float, steps: int) -> None:
    """Where the prior is wrong by a factor of ten, the rungs find out, and the last one goes to what lay between the first ones."""
    field = entries(*np.geomspace(0.003, 0.3, 16))

    def after(entry: Entry, done: int) -> float:
        return rate * entry.untrained * (100 / done) ** 0.5

    plan = rungs(steps, 3)
    race(field, plan, lambda entry, rung: after(entry, entry.steps + rung.steps), bar(ALLOWED))
    won = min((e for e in field if e.drops and e.drops[-1][1] <= ALLOWED), key=lambda e: e.objective)
    possible = min((e for e in field if after(e, plan[-1].steps) <= ALLOWED), key=lambda e: e.objective)
    assert won.untrained > possible.untrained / 3


def test_training_is_not_spent_on_what_has_come_back() -> None:
    field, trained = entries(0.004, 0.02, 0.03, 0.04, 0.1), list[int]()

    def train(entry: Entry, rung: Rung) -> float:
        trained.append(entry.plan.seed)
        return {0: 0.0, 1: 0.001, 2: 0.002, 3: 0.004, 4: 0.09}[entry.plan.seed]

    race(field, rungs(1000, 3), train, bar(ALLOWED))
    assert trained[-1] == 3, "nothing that was trained before, but what lay between"
    assert trained.count(0) <= 1


def test_the_last_rung_starts_nothing_new_unless_something_is_there_to_fall_back_on() -> None:
    field, late = entries(0.01, 0.02, 0.03, 0.06), list[int]()

    def train(entry: Entry, rung: Rung) -> float:
        if rung.steps == rungs(1000, 3)[-1].steps:
            late.append(entry.steps)
        return 0.8 * ALLOWED if entry.plan.seed == 0 else 0.05

    race(field, rungs(1000, 3), train, bar(ALLOWED))
    assert late and all(steps > 0 for steps in late)


def test_the_forecast_of_what_was_not_trained_lies_between_its_neighbours() -> None:
    field = entries(0.01, 0.02, 0.03, 0.05)
    assert forecast(field, 1500) == pytest.approx([0.35 * e.untrained for e in field]), "by the prior, before anything was trained"
    field[0].drops.append((100, 0.004))
    field[2].drops.append((100, 0.012))
    first, second, third, last = forecast(field, 300)
    assert (first, third) == pytest.approx((0.004 / 2, 0.012 / 2)), "they have 100 steps more than the others"
    fresh = 0.004 / 3**0.5, 0.012 / 3**0.5
    assert second == pytest.approx(sum(fresh) / 2)
    assert last > fresh[1]


def test_drops_tend_to_what_is_expected_where_nothing_was_seen_to_be_lost() -> None:
    """ResNet-20 in ten minutes: 0.0088 after 30 steps was expected to be 0.0019 after 600 more, the same as the floor of what had hardly lost anything; it was 0.006 after 120."""
    daring, mild = (Entry(Plan(model=MODEL, seed=i), 1.0, drop, floor=floor) for i, (drop, floor) in enumerate(((0.0144, 0.0038), (0.006, 0.0034))))
    assert daring.foreseen(0) == pytest.approx(daring.untrained) and daring.floor < daring.foreseen(6000) < daring.foreseen(600) < daring.untrained
    daring.drops.append((30, 0.0088))
    assert daring.expected(630) == pytest.approx(0.0038 + 0.0050 * (30 / 630) ** 0.5)
    assert daring.floor < forecast([daring, mild], 600)[0] and mild.floor < forecast([daring, mild], 600)[1] < forecast([daring, mild], 600)[0]
    daring.drops.append((120, 0.0068))
    assert bottom_of([daring]) == 0.0
    daring.drops.append((480, 0.0005))
    assert bottom_of([daring]) > 0.0, "below the floor"


def test_a_race_cut_off_by_the_clock_returns_what_was_trained() -> None:
    calls = 0

    def train(entry: Entry, rung: Rung) -> float | None:
        nonlocal calls
        calls += 1
        return 0.01 if calls <= 2 else None

    assert len(race(entries(0.01, 0.02, 0.03, 0.04), rungs(1000, 4), train, bar(0.02))) == 2


def test_an_expected_gain_is_not_scaled_away() -> None:
    entry = Entry(Plan(model=MODEL), 1.0, 0.01, [(100, -0.01)])
    assert entry.expected(1000) == -0.01


def test_beside_a_daring_one_that_may_fail_a_milder_one_is_trained_on() -> None:
    """ResNet-20 in ten minutes: what had come back best after the first rung was left, and of two that were trained on both failed on the holdout."""
    field, late = entries(0.01, 0.02, 0.03, 0.04), list[int]()

    def train(entry: Entry, rung: Rung) -> float:
        late.append(entry.plan.seed)
        return {0: 0.0035, 1: 0.013, 2: 0.016, 3: 0.028}[entry.plan.seed] * (100 / (entry.steps + rung.steps)) ** 0.5

    race(field, [Rung(4, 100), Rung(2, 300)], train, Bar(0.006, 0.004, 0.7))
    assert sorted(late[4:]) == [0, 2]


def test_the_chance_of_a_price_is_that_of_the_likeliest_which_costs_no_more() -> None:
    half, tenth = math.log(2), -math.log(0.9)
    assert worth([(0.5, 0.5)], 1.0) == worth([(0.5, 0.5), (0.7, 0.4), (1.2, 1.0)], 1.0) == pytest.approx(0.5 * half)
    assert worth([(0.5, 0.5), (0.9, 1.0)], 1.0) == pytest.approx(0.5 * half + 0.5 * tenth)
    assert worth([(0.005, 0.5)], 0.01) == pytest.approx(0.5 * half), "ratios count, wherever they lie"
    assert worth([], 1.0) == 0.0


def test_what_drops_tend_to_is_learned_from_those_that_were_trained_twice() -> None:
    """Drops of ResNet-20's entries after 300, 1,500 and 4,800 steps."""
    field = entries(0.066, 0.154, 0.019)
    assert bottom_of(field) == 0.0
    field[0].drops += [(300, 0.0253), (1500, 0.0077)]
    field[1].drops += [(300, 0.0456), (1500, 0.0176)]
    field[2].drops.append((300, 0.0086))
    bottom = bottom_of(field)
    assert 0.004 < bottom < 0.007
    assert field[0].expected(4800) == pytest.approx(0.0043, abs=1e-4) and field[0].expected(4800, bottom) == pytest.approx(0.0007, abs=1.5e-3)
    assert forecast(field, 3300)[2] < 0.0, "what was trained once comes back as far as those that were trained twice"
    field[0].drops.append((4800, 0.009))
    field[1].drops.append((4800, 0.018))
    assert bottom_of(field) == 0.0, "what gets no better tends to nothing that is better"
