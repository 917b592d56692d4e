"""Marginal prices: against solving by hand, and against every combination."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from slimline.core.budget import Budget
from slimline.core.formats import Affine
from slimline.core.plan import Decision, Fingerprint, Recovery
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.methods.low_rank import LowRank
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.search.allocator import multipliers
from slimline.search.prices import alternatives, least_loss, prices, rates
from slimline.search.space import Corrections, Option, Place, Space, Timing, layers_of
from slimline.search.strategies.allocate import UNRECOVERED, solve

BITS = ((8, 0.001), (4, 0.01), (2, 0.1))


@pytest.fixture(scope="module")
def space() -> Space:
    """Five layers of unlike width: float, 8, 4 or 2 bits, losses growing along the network."""
    widths = (8, 16, 24, 16, 8, 4)
    net = nn.Sequential(*[nn.Linear(a, b) for a, b in itertools.pairwise(widths)])
    program = Program.export(net, Samples.of(torch.zeros(2, widths[0])))
    places = []
    for i, (name, use) in enumerate(program.weights.items()):
        site = Site(id=name, kind="weight", op=use.op, shape=use.shape)
        options = [
            Option(f"{bits} bits", (Decision(site=name, method=StaticInt8(bits=bits)),), loss * (i + 1), format=Affine(bits=bits, axis=0), execute="integer")
            for bits, loss in BITS
        ]
        places.append(Place(site, (Option("keep"), *options)))
    full = {e: dict.fromkeys(program.weights, ms) for e, ms in (("float", 1.0), ("integer", 0.5))}
    mark = Fingerprint(architecture="a", weights="w")
    return Space(mark, tuple(places), layers_of(program.weights, places), Timing(full, {}, 0.0), 0, 0, Recovery(steps=0))


def every(space: Space) -> list[tuple[tuple[int, ...], dict[str, float], float]]:
    choices = itertools.product(*(range(len(p.options)) for p in space.places))
    return [(c, dict(space.costs(c)), space.loss(c)) for c in choices]


@pytest.mark.parametrize("seed", range(5))
def test_a_multiplier_is_the_slope_of_the_relaxed_optimum(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cost, loss = [draw.random(4) for _ in range(6)], [draw.random(4) for _ in range(6)]

    def relaxed(limit: float) -> float:
        """By its own dual: the largest over the multiplier of the sum of least reduced costs, less what the limit is worth."""
        grid = np.linspace(0, 20, 20_001)
        sums = sum(np.min(c[:, None] + grid[None, :] * x[:, None], axis=0) for c, x in zip(cost, loss, strict=True))
        return float(np.max(sums - grid * limit))

    limit = 0.5 * (sum(float(x.min()) for x in loss) + sum(float(x[c.argmin()]) for c, x in zip(cost, loss, strict=True)))
    found = multipliers(cost, [(loss, limit), (loss, 100.0)])
    assert found is not None and found[1] == 0
    before, after = (relaxed(limit - 1e-2) - relaxed(limit)) / 1e-2, (relaxed(limit) - relaxed(limit + 1e-2)) / 1e-2
    assert after - 2e-3 <= found[0] <= before + 2e-3  # the optimum is convex in the limit, with kinks


def test_least_loss_is_the_least_of_all_combinations(space: Space) -> None:
    low, high = space.costs((3,) * 5)["size"], space.costs(space.nothing)["size"]
    for share in (0.1, 0.3, 0.6):
        limit = low + share * (high - low)
        best = min(loss for _, costs, loss in every(space) if costs["size"] <= limit)
        found = least_loss(space, {"size": limit}, Corrections(), space.nothing)
        assert found is not None and space.costs(found)["size"] <= limit
        assert space.loss(found) == pytest.approx(best, rel=2e-3)


def test_least_loss_keeps_a_start_that_nothing_beats_and_gives_none_where_nothing_fits(space: Space) -> None:
    assert least_loss(space, {"size": 1e9}, Corrections(), space.nothing) == space.nothing
    assert least_loss(space, {"size": 1.0}, Corrections(), space.nothing) is None


def test_what_a_step_of_the_minimised_bytes_spares_is_what_the_best_combination_spares(space: Space) -> None:
    budget = Budget(minimize="size")
    choice = solve(space, budget, 0.1, Corrections())
    assert choice is not None
    price, loss = prices(space, budget, choice, ())
    assert (price.quantity, price.limit, price.binds, price.buys) == ("size", None, False, {})
    least = [min(x for _, costs, x in every(space) if costs["size"] <= limit) for limit in (price.used, price.used + price.step)]
    assert price.loss_change == pytest.approx(least[1] - least[0], abs=1e-6) and price.loss_change < 0
    assert prices(space, budget, choice, (), drop=0.02)[0].drop_change == pytest.approx(0.02 * price.loss_change / space.loss(choice))
    assert loss.quantity == "loss" and loss.step == pytest.approx(0.1 * space.loss(choice)) and loss.buys["size"] <= 0


def test_a_limit_binds_where_it_is_in_the_way_and_not_where_it_is_far(space: Space) -> None:
    full = space.costs(space.nothing)["size"]
    tight = Budget(minimize="latency", size_bytes=int(1.2 * space.costs((3,) * 5)["size"]))
    choice = solve(space, tight, 0.5, Corrections())
    assert choice is not None
    size = prices(space, tight, choice, ())[0]
    assert size.binds and size.limit == tight.size_bytes and size.step == pytest.approx(0.1 * tight.size_bytes)
    assert size.loss_change is not None and size.loss_change < 0
    loose = Budget(minimize="latency", size_bytes=int(2 * full))
    choice = solve(space, loose, 0.5, Corrections())
    assert choice is not None
    size = prices(space, loose, choice, ())[0]
    assert not size.binds and size.loss_change == 0 and all(abs(v) < 1e-9 for v in size.buys.values())


def test_contenders_lose_less_and_more_and_cost_what_the_plan_pays_for_them(space: Space) -> None:
    budget = Budget(minimize="size")
    choice = solve(space, budget, 0.1, Corrections())
    assert choice is not None
    here = rates(space, budget, choice, Corrections())
    assert here.loss > 0
    costs, loss = space.costs(choice), space.loss(choice)
    for place, (taken, rivals) in enumerate(zip(choice, alternatives(space, budget, choice, ()), strict=True)):
        labels = [o.label for o in space.places[place].options]
        assert [r.milder for r in rivals] == [True] * (taken > 0) + [False] * (taken < 3)
        for rival in rivals:
            other = (*choice[:place], labels.index(rival.label), *choice[place + 1 :])
            assert rival.changes["size"] == pytest.approx(space.costs(other)["size"] - costs["size"])
            assert rival.changes["loss"] == pytest.approx(space.loss(other) - loss)
            assert rival.worth is not None
            behind = rival.changes["loss"] + (rival.worth if rival.milder else -rival.worth)
            assert rival.reason == ("price" if behind > -1e-9 else "estimate")


def test_an_option_that_breaks_a_limit_says_which(space: Space) -> None:
    budget = Budget(minimize="latency", size_bytes=int(space.costs((3, 3, 3, 3, 3))["size"]) + 1)
    rivals = alternatives(space, budget, (3, 3, 3, 3, 3), ())
    assert all(r.reason == "limit" and r.quantity == "size" for site in rivals for r in site if r.milder)
    assert all(any(r.milder for r in site) for site in rivals)


def test_no_time_no_price(space: Space) -> None:
    assert prices(space, Budget(), space.nothing, (), over=lambda: True) == ()


def test_where_training_follows_rounding_counts_more_beside_what_changes_shapes(space: Space) -> None:
    last = space.places[-1]
    factors = Option("low rank", (Decision(site=last.site.id, method=LowRank(rank=1)),), 0.001, factors=((1, 8), (4, 1)))
    factored = replace(space, places=(*space.places[:-1], replace(last, options=(*last.options, factors))))
    trained = replace(factored, recovery=Recovery(steps=100))
    for choice, more in (((2, 2, 2, 2, 4), UNRECOVERED), ((2, 2, 2, 2, 2), 1.0)):
        plain, counted = (alternatives(s, Budget(minimize="size"), choice, ())[0][0].changes["loss"] for s in (factored, trained))
        assert counted == pytest.approx(more * plain)
