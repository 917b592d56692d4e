"""Recovery by successive halving: a few candidates get a little training, the best of them and of what lies between them the rest.

References:
    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from slimline.core.plan import Plan

SHARES = (0.15, 0.30, 0.55)  # of all steps, per rung
LEFT, LEFT_AFTER, LEAST_LEFT, MOST_LEFT = 0.35, 1500, 0.1, 0.8  # of a drop, after so many steps of a race, as seen on ResNet-20
GAIN = 0.5  # a drop shrinks about with the square root of the steps
OPENING = 0.6, 4.0  # of the allowance: drops after recovery, by the prior, of the first rung's mildest and most daring entry
SETTLED = 0.5  # of the allowance: a drop that is there to fall back on
DOUBT = 0.5  # of a drop that is expected after more training, its standard error
TINY = 1e-6


def left(steps: int) -> float:
    """The share of a drop that is expected to be left after a recovery of ``steps`` in all; decides what is tried and trained, not what wins.

    Example:
        >>> [round(left(steps), 2) for steps in (0, 500, 1500, 6000)]
        [1.0, 0.61, 0.35, 0.17]
    """
    return min(MOST_LEFT, max(LEAST_LEFT, LEFT * (LEFT_AFTER / steps) ** GAIN)) if steps else 1.0


@dataclass
class Entry:
    """A candidate in the race. ``objective``: what is minimised. ``untrained``: the drop before training. ``drops``: (steps so far, drop then). Drops are those to expect on the holdout;
    ``floor``: of what loses nothing on the samples that it is judged by, where training leads."""

    plan: Plan
    objective: float
    untrained: float
    drops: list[tuple[int, float]] = field(default_factory=list)
    floor: float = 0.0

    @property
    def steps(self) -> int:
        return self.drops[-1][0] if self.drops else 0

    def expected(self, steps: int, bottom: float = 0.0) -> float:
        """The drop to expect after ``steps`` in all: what it is above the floor less ``bottom`` shrinks; a gain beyond that stays."""
        done, drop = self.drops[-1]
        end = self.floor - bottom
        return end + (drop - end) * (done / steps) ** GAIN if drop > end and done and steps else drop

    def foreseen(self, steps: int) -> float:
        """The same by the prior, before it was trained."""
        return self.floor + left(steps) * (self.untrained - self.floor)


def bottom_of(entries: Iterable[Entry]) -> float:
    """How far below their floors the drops of ``entries`` tend, by the last two of each: the middle of what they say, 0 at least.

    Distillation goes on where the original was left: four of five of ResNet-20's entries tended to 0.2 to 0.8 points better than it, and taken to tend to zero what had lost 0.8 points after
    1,500 steps was expected to lose 0.4 after 4,800, and lost 0.1.

    Example:
        >>> from slimline.core.plan import Fingerprint
        >>> plan = Plan(model=Fingerprint(architecture="a", weights="w"))
        >>> round(bottom_of([Entry(plan, 1.0, 0.066, [(300, 0.0253), (1500, 0.0077)])]), 4)
        0.0065
    """
    found = []
    for entry in entries:
        if len(entry.drops) > 1:
            (before, first), (after, second) = entry.drops[-2:]
            found.append(max(0.0, (first - second) / ((after / before) ** GAIN - 1) - (second - entry.floor)))
    return float(np.median(found)) if found else 0.0


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


@dataclass(frozen=True)
class Bar:
    """What entries are held against: the drop ``allowed`` of those expected on the holdout, the standard error of what is expected and of what will be seen there, as one, and the price
    (``objective``) of what is delivered where none passes."""

    allowed: float
    spread: float = TINY
    nothing: float = 0.0

    def chance(self, drop: float, doubt: float = 0.0) -> float:
        """To pass, of an expected ``drop`` with a standard error of its own.

        Example:
            >>> [round(Bar(0.006, 0.004).chance(drop), 2) for drop in (-0.002, 0.006, 0.01)]
            [0.98, 0.5, 0.16]
        """
        return float(stats.norm.cdf((self.allowed - drop) / math.hypot(self.spread, doubt)))


def worth(prospects: Iterable[tuple[float, float]], nothing: float) -> float:
    """How many times smaller than ``nothing`` the price of the delivered one is expected to be, as a logarithm. ``prospects``: a price and a chance to pass each; who is the likelier
    passes where the other does.

    Then the chance of a price of at most p is the largest chance of those that cost at most p. Ratios count, not differences: from 38 to 5 KB is seven times smaller, and next to
    nothing of an original of 1.4 MB.

    Example:
        >>> round(worth([(0.5, 0.6), (0.8, 0.9), (0.7, 0.5)], 1.0), 3)
        0.483
    """
    total, reached, before = 0.0, 0.0, 0.0
    for price, chance in [*sorted(prospects), (math.inf, 0.0)]:
        if reached and before < nothing:
            total += reached * math.log(min(price, nothing) / before)
        reached, before = max(reached, chance), price
    return round(total, 9)


def race(
    entries: Sequence[Entry],
    plan: Sequence[Rung],
    train: Callable[[Entry, Rung], float | None],
    bar: Bar,
    before: Callable[[Sequence[Entry], Rung], None] = lambda entries, rung: None,
) -> list[Entry]:
    """Run the rungs; returns what was trained, the best objective first.

    ``entries``: all that may be trained, more than the first rung takes. ``train`` trains one entry further and returns its drop (``None``: time is up, the race ends).
    ``before`` is told who will be trained in a rung. The first rung's entries lie around the one that is expected to just keep what ``bar`` allows. How much of their
    drops training brings back says what to expect of all the others, so that a later rung may take one from between them.
    """
    for place, rung in enumerate(plan):
        remaining = sum(r.steps for r in plan[place:])
        field_ = _stay(entries, rung.entries, remaining, bar, last=place == len(plan) - 1) if place else _opening(entries, rung.entries, remaining, bar.allowed)
        before(field_, rung)
        for entry in field_:
            drop = train(entry, rung)
            if drop is None:
                return _by_objective(entries)
            entry.drops.append((entry.steps + rung.steps, drop))
    return _by_objective(entries)


def _by_objective(entries: Sequence[Entry]) -> list[Entry]:
    """Those that were trained, the best objective first."""
    return sorted((e for e in entries if e.drops), key=lambda e: e.objective)


def _opening(entries: Sequence[Entry], count: int, steps: int, allowed: float) -> list[Entry]:
    """Of a wide range around the edge: what training brings back is only known once something was trained."""
    chosen: list[Entry] = []
    for share in np.geomspace(*OPENING, count):
        rest = [e for e in entries if e not in chosen]
        if rest:
            aim = max(share * allowed, TINY)
            chosen.append(min(rest, key=lambda e: abs(math.log(max(e.foreseen(steps), TINY) / aim))))
    return chosen


def forecast(entries: Sequence[Entry], steps: int) -> list[float]:
    """The drop to expect of each after ``steps`` more: of those that were trained from their own, of the others from their neighbours' (above the floor of each, linear between them, and
    from the mildest down to what has nothing to bring back)."""
    bottom = bottom_of(entries)
    known = sorted((e.untrained - e.floor, e.expected(steps, bottom) - e.floor) for e in entries if e.drops)
    if known and known[0][0] > 0:
        known.insert(0, (0.0, min(-bottom, known[0][1])))
    before, after = [drop for drop, _ in known], [drop for _, drop in known]
    found = []
    for entry in entries:
        above = entry.untrained - entry.floor
        if entry.drops:
            found.append(entry.expected(entry.steps + steps, bottom))
        elif not known:
            found.append(entry.foreseen(steps))
        elif above > before[-1]:
            found.append(entry.floor + after[-1] + left(steps) * (above - before[-1]))
        else:
            found.append(entry.floor + float(np.interp(above, before, after)))
    return found


def _stay(entries: Sequence[Entry], count: int, steps: int, bar: Bar, *, last: bool) -> list[Entry]:
    """One after the other, those whose training adds the most to what all are worth: beside a daring one that may fail a milder one, beside one that has come back a more daring one.

    None is trained in the last rung alone, unless one that has come back is there to fall back on.
    """
    expected = {id(e): drop for e, drop in zip(entries, forecast(entries, steps), strict=True)}
    chances = {id(e): bar.chance(min(e.untrained, e.drops[-1][1]) if e.drops else e.untrained) for e in entries}
    back = any(e.drops and e.drops[-1][1] <= SETTLED * bar.allowed for e in entries)
    pool = [e for e in entries if e.drops or back or not last]
    chosen: list[Entry] = []

    def then(entry: Entry) -> float:
        drop = expected[id(entry)]
        return max(chances[id(entry)], bar.chance(drop, DOUBT * abs(drop)))

    def total(entry: Entry) -> float:
        """What all are worth with this one trained, too."""
        return worth(((e.objective, then(e) if e is entry else chances[id(e)]) for e in entries), bar.nothing)

    while len(chosen) < count and (rest := [e for e in pool if e not in chosen]):
        best = max(rest, key=lambda e: (total(e), -expected[id(e)]))
        chosen.append(best)
        chances[id(best)] = then(best)
    return chosen
