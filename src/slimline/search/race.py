"""Recovery by successive halving: many candidates get a little training, the best of them the rest.

References:
    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slimline.core.plan import Plan

SHARES = (0.15, 0.30, 0.55)  # of all steps, per rung
LEFT, LEFT_AFTER, LEAST_LEFT, MOST_LEFT = 0.35, 1500, 0.1, 0.8  # of a drop, after so many steps of a race, as seen on ResNet-20
GAIN = 0.5  # a drop shrinks about with the square root of the steps


def left(steps: int) -> float:
    """The share of a drop that is expected to be left after a recovery of ``steps`` in all; decides what is tried and trained, not what wins.

    Example:
        >>> [round(left(steps), 2) for steps in (0, 500, 1500, 6000)]
        [1.0, 0.61, 0.35, 0.17]
    """
    return min(MOST_LEFT, max(LEAST_LEFT, LEFT * (LEFT_AFTER / steps) ** GAIN)) if steps else 1.0


@dataclass
class Entry:
    """A candidate in the race. ``objective``: what is minimised. ``drops``: (steps so far, drop then)."""

    plan: Plan
    objective: float
    drops: list[tuple[int, float]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.drops[-1][0] if self.drops else 0

    def expected(self, steps: int) -> float:
        """The drop to expect after ``steps`` in all; a gain (negative drop) stays."""
        done, drop = self.drops[-1]
        return drop * (done / steps) ** GAIN if drop > 0 and done and steps > done else drop


@dataclass(frozen=True)
class Rung:
    """``entries`` candidates get ``steps`` each."""

    entries: int
    steps: int


def rungs(total: int, candidates: int) -> tuple[Rung, ...]:
    """How ``total`` steps are spent on ``candidates``.

    Example:
        >>> [(r.entries, r.steps) for r in rungs(1000, 4)]
        [(4, 37), (2, 150), (1, 550)]
    """
    sizes = []
    count = candidates
    for _ in SHARES:
        sizes.append(count)
        count = max(1, math.ceil(count / 2))
    return tuple(Rung(n, int(total * s / n)) for n, s in zip(sizes, SHARES, strict=True) if int(total * s / n) > 0)


def race(
    entries: Sequence[Entry],
    plan: Sequence[Rung],
    train: Callable[[Entry, Rung], float | None],
    allowed: float,
    before: Callable[[Sequence[Entry], Rung], None] = lambda entries, rung: None,
) -> list[Entry]:
    """Run the rungs; returns the entries of the last one, the best objective first.

    ``train`` trains one entry further and returns its drop (``None``: time is up, the race ends). ``before`` is told who will be trained in a rung.
    After each rung the entries stay that are expected to end within ``allowed``: the best objective
    among them, its safer neighbours, and the nearest more daring one.
    """
    field_ = list(entries)
    for place, rung in enumerate(plan):
        field_ = field_[: rung.entries] if place == 0 else _stay(field_, rung.entries, sum(r.steps for r in plan), allowed)
        before(field_, rung)
        for entry in field_:
            drop = train(entry, rung)
            if drop is None:
                return sorted([e for e in entries if e.drops], key=lambda e: e.objective)
            entry.drops.append((entry.steps + rung.steps, drop))
    return sorted(field_, key=lambda e: e.objective)


def _stay(entries: Sequence[Entry], count: int, steps: int, allowed: float) -> list[Entry]:
    ranked = sorted(entries, key=lambda e: e.objective)
    good = [i for i, e in enumerate(ranked) if e.expected(steps) <= allowed]
    if not good:
        return sorted(entries, key=lambda e: e.expected(steps))[:count]
    first = good[0]
    order = [first, *[i for i in good if i != first], first - 1]
    if count >= 3 and first > 0:
        order = [first, first - 1, *[i for i in good if i != first]]
    return [ranked[i] for i in order if i >= 0][:count]
