"""What a little more of each budget would buy, and why each site has no other option: from the solver that chose the plan.

Two readings of one optimum. Its *multipliers* (the dual values of the linear relaxation around the plan) say what a unit of each quantity is
worth, which is what every single option is held against. *Solving again* with a limit loosened says what a step of it really buys, since
options come whole.

References:
    Everett, "Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of Resources", Operations Research 11, 1963.
    Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE TASSP 36, 1988 (all sites at one slope).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimline.core.budget import Budget, Quantity
from slimline.core.result import Alternative, Price
from slimline.core.trial import Trial
from slimline.search.allocator import allocate, multipliers
from slimline.search.space import Choice, Corrections, Space
from slimline.search.strategies.allocate import MARGIN, corrections_from, counted_for, exclusions, linearised, solve

ROUNDS = 4  # of linearising the costs around the last solution
SHARE = 0.1  # of a budget, that a step is
MOVED = 1e-3  # relative: a smaller change is none
FIELDS: dict[Quantity, str] = {"size": "size_bytes", "download": "download_bytes", "latency": "latency_ms", "memory": "memory_bytes", "macs": "macs"}


@dataclass(frozen=True)
class Rates:
    """Around a plan: ``loss``, what one nat more takes off the objective; ``costs``, what one unit of each quantity less is worth in the objective."""

    loss: float
    costs: Mapping[Quantity, float]
    binding: frozenset[Quantity]

    def worth(self, changes: Mapping[str, float]) -> float | None:
        """Nats that these changes of costs are worth; positive: they are savings."""
        return -sum(r * changes[q] for q, r in self.costs.items()) / self.loss if self.loss > 0 else None


def rates(space: Space, budget: Budget, choice: Choice, corrections: Corrections) -> Rates:
    """The multipliers of the linear relaxation, with the costs made linear around ``choice`` and its own loss allowed."""
    tables, here = linearised(space, choice, corrections), space.costs(choice, corrections)
    weights = budget.weights(space.costs(space.nothing, corrections))
    objective = [sum((w * t[q] for q, w in weights.items()), np.zeros(len(t["loss"]))) for t in tables]
    asked = budget.limits()
    limits = [([t[q] for t in tables], max(limit * MARGIN - here[q], 0.0)) for q, limit in asked.items()]
    found = multipliers(objective, [([t["loss"] for t in tables], space.loss(choice, corrections)), *limits, *exclusions(space)])
    if found is None:
        return Rates(0.0, weights, frozenset())
    limited = dict(zip(asked, found[1:], strict=False))
    costs = {q: weights.get(q, 0.0) + limited.get(q, 0.0) for q in {**weights, **limited}}
    return Rates(found[0], costs, frozenset(q for q, m in limited.items() if m > 0))


def prices(
    space: Space,
    budget: Budget,
    choice: Choice,
    trials: Sequence[Trial],
    *,
    drop: float | None = None,
    over: Callable[[], bool] = lambda: False,
) -> tuple[Price, ...]:
    """One price for each limit, for what is minimised, and for the loss.

    A step is a tenth more. ``drop``: what the plan lost as delivered, in metric units; ``over``: whether to stop here.

    Example:
        ``prices(space, budget, space.choice(plan), trials)[0].buys["latency"]``: milliseconds that the first limit's step would save.
    """
    plan = _Plan(space, budget, choice, counted_for(space, choice, corrections_from(space, trials)))
    here = rates(space, budget, choice, plan.corrections)
    slope = drop / plan.loss if drop is not None and drop > 0 and plan.loss > 0 else None
    found: list[Price] = []
    for quantity in dict.fromkeys([*budget.limits(), budget.minimize]):
        if over():
            return tuple(found)
        found.append(_of_quantity(plan, quantity, here, slope))
    if plan.loss > 0 and not over():
        found.append(_of_loss(plan, here))
    return tuple(found)


@dataclass(frozen=True)
class _Plan:
    """A plan's choice with its estimates. ``corrections``: by the trials, with losses as the search counts them."""

    space: Space
    budget: Budget
    choice: Choice
    corrections: Corrections

    @property
    def costs(self) -> dict[Quantity, float]:
        return self.space.costs(self.choice, self.corrections)

    @property
    def loss(self) -> float:
        return self.space.loss(self.choice, self.corrections)

    def changes(self, one: Choice, other: Choice) -> dict[str, float]:
        a, b = (self.space.costs(c, self.corrections) for c in (one, other))
        shown = {*self.budget.limits(), self.budget.minimize, "size", "latency"}
        return {q: b[q] - a[q] for q in a if q in shown}


def _of_quantity(plan: _Plan, quantity: Quantity, here: Rates, slope: float | None) -> Price:
    space, budget, costs = plan.space, plan.budget, plan.costs
    limit = budget.limits().get(quantity)
    spent = quantity == budget.minimize  # then more of it is allowed from where the plan is
    start = costs[quantity] if limit is None or spent else limit
    more = SHARE * start
    others = {q: max(v, costs[q]) for q, v in budget.limits().items() if q != quantity}
    if not spent:
        others[budget.minimize] = min(costs[budget.minimize], others.get(budget.minimize, math.inf))
    mild = least_loss(space, {**others, quantity: start}, plan.corrections, plan.choice)
    milder = least_loss(space, {**others, quantity: start + more}, plan.corrections, mild or plan.choice)
    loss_change = None if mild is None or milder is None else space.loss(milder, plan.corrections) - space.loss(mild, plan.corrections)
    buys: dict[str, float] = {}
    if not spent:
        loosened = budget.model_copy(update={FIELDS[quantity]: start + more})
        pair = [solve(space, b, plan.loss, plan.corrections) for b in (budget, loosened)]
        if pair[0] is not None and pair[1] is not None:
            buys = plan.changes(pair[0], pair[1])
    gained = -buys.get(budget.minimize, 0.0) > MOVED * costs[budget.minimize] or (loss_change or 0.0) < -MOVED * plan.loss
    return Price(
        quantity=quantity,
        limit=limit,
        used=costs[quantity],
        step=more,
        binds=limit is not None and (quantity in here.binding or (gained and not spent)),
        worth=here.costs.get(quantity, 0.0) / here.loss if here.loss > 0 else None,
        buys=buys,
        loss_change=loss_change,
        drop_change=None if slope is None or loss_change is None else slope * loss_change,
    )


def _of_loss(plan: _Plan, here: Rates) -> Price:
    """A tenth more loss than the plan's: what the optimum gains."""
    pair = [solve(plan.space, plan.budget, (1 + share) * plan.loss, plan.corrections) for share in (0.0, SHARE)]
    buys = plan.changes(pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else {}
    return Price(quantity="loss", limit=None, used=plan.loss, step=SHARE * plan.loss, binds=here.loss > 0, worth=1.0 if here.loss > 0 else None, buys=buys)


def least_loss(space: Space, limits: Mapping[Quantity, float], corrections: Corrections, start: Choice) -> Choice | None:
    """The choice of the least estimated loss within ``limits``, not worse than ``start`` where that is within them; ``None`` if none was found."""

    def within(choice: Choice) -> bool:
        costs = space.costs(choice, corrections)
        return space.legal(choice) and all(costs[q] <= limit * (1 + 1e-9) for q, limit in limits.items())

    best = start if within(start) else None
    around = start
    for _ in range(ROUNDS):
        tables, here = linearised(space, around, corrections), space.costs(around, corrections)
        rows = [([t[q] for t in tables], limit - here[q]) for q, limit in limits.items()]
        solved = allocate([t["loss"] for t in tables], [*rows, *exclusions(space)])
        found = None if solved is None else solved[: len(space.places)]
        if found is None or found == around:
            break
        around = found
        if within(found) and (best is None or space.loss(found, corrections) < space.loss(best, corrections)):
            best = found
    return best


def alternatives(space: Space, budget: Budget, choice: Choice, trials: Sequence[Trial]) -> tuple[tuple[Alternative, ...], ...]:
    """Of each place the closest contenders, one that loses less and one that loses more than what was taken: what they would change, and why they were not taken."""
    plan = _Plan(space, budget, choice, counted_for(space, choice, corrections_from(space, trials)))
    here = rates(space, budget, choice, plan.corrections)
    gone = space.gone(choice)
    return tuple(() if i in gone else _at(plan, i, here) for i in range(len(space.places)))


def _at(plan: _Plan, index: int, here: Rates) -> tuple[Alternative, ...]:
    space, choice, costs = plan.space, plan.choice, plan.costs
    sides: dict[bool, list[tuple[bool, float, Alternative]]] = {True: [], False: []}
    for j, option in enumerate(space.places[index].options):
        if j == choice[index]:
            continue
        other = (*choice[:index], j, *choice[index + 1 :])
        found, theirs = _held(plan, other, here, option.label), space.costs(other, plan.corrections)
        dearer = sum(r * (theirs[q] - costs[q]) for q, r in here.costs.items())
        pointless = not found.milder and dearer >= 0  # loses more and saves nothing
        sides[found.milder].append((found.reason == "whole" or pointless, here.loss * found.changes["loss"] + dearer, found))
    return tuple(min(side, key=lambda s: s[:2])[2] for side in sides.values() if side)


def _held(plan: _Plan, other: Choice, here: Rates, label: str) -> Alternative:
    """One option against the plan's prices."""
    changes = plan.changes(plan.choice, other)
    costs = plan.space.costs(other, plan.corrections)
    lost = plan.space.loss(other, plan.corrections) - plan.loss
    saved = here.worth({q: costs[q] - plan.costs[q] for q in here.costs})
    broken = next((q for q, limit in plan.budget.limits().items() if costs[q] > limit and costs[q] > plan.costs[q]), "")
    reason = "whole" if not plan.space.legal(other) else "limit" if broken else "estimate" if saved is not None and saved - lost > 1e-9 else "price"
    milder = lost < 0 or (lost == 0 and (saved or 0.0) < 0)
    return Alternative.model_validate(
        {
            "label": label,
            "milder": milder,
            "changes": {**changes, "loss": lost},
            "worth": None if saved is None else -saved if milder else saved,
            "reason": reason,
            "quantity": broken if reason == "limit" else "",
        }
    )
