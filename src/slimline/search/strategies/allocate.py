"""Measure every option once, solve exactly, measure the result, correct the estimates, solve again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from slimline.core.budget import HALF, Budget, Quantity
from slimline.core.plan import Plan
from slimline.core.trial import Trial
from slimline.numerics.changes import USUAL
from slimline.search.allocator import Limit, allocate
from slimline.search.drops import believed_drops
from slimline.search.nearby import Nearby
from slimline.search.race import left
from slimline.search.space import Choice, Corrections, Space

ROUNDS = 6  # of linearising the costs around the last solution
MARGIN = 0.98  # of a limit that estimates may use
UNRECOVERED = 2.5  # training brings back what structure loses, and little of what rounding does (ResNet-20), whose loss counts so much more
EDGE = 0.5  # of the allowance: the rest is for the interval on the holdout, and because what was chosen looks better than it is
REACH = 1.0  # times the allowance: what is expected to lose more after recovery is out of reach; with the interval on the holdout, and what is lost there beyond the search samples, that is daring
LEAST, MOST, UNTRAINED = 3e-4, 1.5, 0.1  # losses (nats) between which the ladder lies: to the second where recovery follows, else to the third
PER_POINT = 0.055  # nats that ``REACH`` points went with on ResNet-20 (0.07 with 1.2, 0.29 with 5.9): so much for each point allowed is within reach untrained, more with training
PER_POINT_OF_VALUES = 0.02  # relative squared error of values: a cosine falls by half of it, so that is ``REACH`` points with each point
HIGHEST, HALVINGS = 10.0, 6  # loss up to which the least that keeps the limits is looked for, and in how many steps
LEAST_POINTS = 0.3  # that the allowance counts as, however small: what loses nothing measurable is left out of no ladder
ABOVE = 4.0  # times the least loss that keeps the limits, where the ladder ends if that is above all else
SAME = 0.05  # of a loss: what differs less says nothing new
TRAINED = 5e-3  # its second rung where recovery follows: what loses less comes back whatever it is


class Allocate:
    """A ladder of loss levels; at each, the best combination for the budget.

    The second candidate is the plan that everybody tries: integers of eight bits everywhere. The third, where training follows, leaves every shape as it is and stores weights in as
    few bits as training may make up for: it is trained with its quantizers from the first step on, and comes back sooner than what lost channels.

    Costs are not additive across coupled sites (a layer's bytes are kept outputs x kept inputs x bits):
    they are made linear around the last solution, solved exactly, and made linear again until
    the solution stays. Half of the ``levels`` candidates are that ladder, of four its ends. The rest are solved
    where it decides, with the estimates corrected from all that was measured: between the most daring
    candidate that is expected to keep the allowance after recovery and the next one.
    """

    name: ClassVar[str] = "allocate"

    def __init__(self, levels: int = 12, most: float = MOST) -> None:
        self.levels = levels
        self.most = most

    def propose(self, space: Space, budget: Budget, trials: Sequence[Trial]) -> Plan | None:
        """The next plan that was not tried, or ``None`` when the ladder is done. A pure function of the trials."""
        mine = [t for t in trials if t.origin.startswith(self.name)]
        tried = {_decided(t.plan) for t in mine}
        corrections = corrections_from(space, trials)
        if len(mine) >= self.levels:
            return None
        eight, alone = eight_bits(space), self._shapes_kept(space, budget, mine)
        if len(mine) == 1 and _decided(space.plan(eight)) not in tried and self._worthwhile(space, budget, eight, corrections):
            return space.plan(eight)
        if len(mine) == 2 and alone is not None and _decided(alone) not in tried:
            return alone
        floor = min(least_level(part, budget, known) for part, known in _counted_parts(space, corrections))
        beside = {_decided(space.plan(eight)), *(_decided(t.plan) for t in mine[2:3] if alone is not None and _decided(t.plan) == _decided(alone))}
        climbed = sum(_decided(t.plan) not in beside for t in mine)
        for level in self._levels(space, budget, mine, corrections, floor, climbed):
            choice = _cheapest(space, budget, max(level, floor), corrections)
            if choice is not None and _decided(space.plan(choice)) not in tried:
                return space.plan(choice)
        return None

    def _shapes_kept(self, space: Space, budget: Budget, mine: Sequence[Trial]) -> Plan | None:
        """The best plan of numerics alone that training may bring back, by what the first two trials say; ``None`` before them, without training, or where nothing keeps the limits."""
        if len(mine) < 2 or not space.steps:
            return None
        whole = space.shapes_kept
        choice = solve(whole, budget, self._top(space, budget), counted(whole, corrections_from(whole, mine[:2])))
        return whole.plan(choice) if choice is not None and any(choice) else None

    def _top(self, space: Space, budget: Budget) -> float:
        """The loss beyond which nothing is worth measuring."""
        return min(self.most, within_reach(budget, space.steps, classes=space.classes) if space.steps else UNTRAINED)

    def _worthwhile(self, space: Space, budget: Budget, choice: Choice, corrections: Corrections) -> bool:
        """Whether it does anything, keeps the limits, and loses no more than the ladder's last rung."""
        costs = space.costs(choice, corrections)
        return (
            any(choice)
            and counted_loss(space, choice, corrections) <= self._top(space, budget)
            and all(costs[q] <= limit for q, limit in budget.limits().items())
        )

    def _levels(self, space: Space, budget: Budget, mine: Sequence[Trial], corrections: Corrections, floor: float, climbed: int) -> Iterator[float]:
        """Loss levels to try next: the ladder coarse to fine, so that an interrupted one covers the whole range; then the edge. ``floor``: below it limits cannot be kept; ``climbed``: of the ladder's rungs."""
        ladder = max(2, self.levels // 2)
        rungs = np.geomspace(floor, max(min(self.most, UNTRAINED), ABOVE * floor), ladder)
        if space.steps and (most := min(self.most, within_reach(budget, space.steps, classes=space.classes))) > TRAINED:
            rungs = np.array([floor, *np.geomspace(max(most, ABOVE * floor), max(TRAINED, floor * ABOVE ** (1 / (ladder - 1))), ladder - 1)[::-1]])
        between = [float(level) for level in np.sqrt(rungs[:-1] * rungs[1:])]
        if climbed < ladder:
            yield from (float(rungs[i]) for i in _spread_order(ladder)[climbed:])
            yield from (between[i] for i in _spread_order(len(between)))
            return
        gaps = _edge(space, budget, mine, corrections)
        low, high = gaps[0][0], gaps[0][1]
        found = [low ** (1 - share) * high**share for share in (0.5, 0.25, 0.75) for low, high in gaps]
        found += [low ** (1 - share) * high**share for share in (1.25, -0.25)]
        found += sorted(between, key=lambda level: abs(np.log(level**2 / (low * high))))
        start = _alike(mine) % len(found)
        yield from found[start:] + found[:start]


def _alike(trials: Sequence[Trial]) -> int:
    """How many trials lost what an earlier one did: so many levels are passed over, and others are looked at. Of a gap that the estimates cannot fill,
    ten of ResNet-20's twenty-four candidates were one and the same but for a bit here and there."""
    losses = [max(t.measured_loss, LEAST) for t in trials if t.measured_loss is not None]
    return sum(any(abs(math.log(loss / other)) < SAME for other in losses[:n]) for n, loss in enumerate(losses))


def eight_bits(space: Space) -> Choice:
    """Every weight in integers of eight bits, the best of its options; where those were left out for others that beat them, the one of eight bits or fewer that loses the least.

    It is a corner that no level of loss leads to: where a little more may be lost, the solver stores some layers in four bits.
    """
    found = []
    for place in space.places:
        fits = [
            (o.execute != "integer" or o.format.bits < 8, o.loss, j)
            for j, o in enumerate(place.options)
            if place.site.kind == "weight" and o.decisions and o.format.bits <= 8 and not o.whole
        ]
        found.append(min(fits)[2] if fits else 0)
    return tuple(found)


def least_level(space: Space, budget: Budget, corrections: Corrections) -> float:
    """The least loss at which the limits can be kept, but for a sixth, or ``LEAST``: below it a ladder would have no rungs. Where nothing keeps them, ``LEAST``, too."""
    if not budget.limits() or solve(space, budget, LEAST, corrections) is not None or solve(space, budget, HIGHEST, corrections) is None:
        return LEAST
    low, high = LEAST, HIGHEST
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if solve(space, budget, middle, corrections) is not None else (middle, high)
    return high


def within_reach(budget: Budget, steps: int, *, classes: bool = True) -> float:
    """The loss, in nats (of values a relative squared error), up to which a candidate is worth measuring where ``steps`` of recovery follow: beyond, the ladder has no rungs, since what training may bring back grows with its steps.

    Example:
        >>> [round(within_reach(Budget(max_drop=drop), steps), 2) for drop, steps in (("1%", 80), ("1%", 1500), ("1%", 6000), ("5%", 1500))]
        [0.07, 0.16, 0.31, 0.79]
    """
    drop = budget.max_drop
    points = 100 * drop.value if not drop.relative and drop.value < HALF else 1.0
    return (PER_POINT if classes else PER_POINT_OF_VALUES) * max(points, LEAST_POINTS) / left(steps)


def _edge(space: Space, budget: Budget, trials: Sequence[Trial], corrections: Corrections) -> list[tuple[float, float]]:
    """Losses, as they are estimated, between which nothing was tried: from the last trial that is expected to keep the allowance after recovery to the first
    that is not, or, where training follows, that is out of reach. The widest gap comes first.

    Of those trials that no milder one beats; if none keeps it, milder ones than all of them are looked for. Of few samples drops are not believed (``believed_drops``).
    Where nothing is trained, changed answers count too: they are seen long before a drop. Outputs that are values have no answers; there the drop must leave room for the interval
    on the holdout.
    """
    weights = budget.weights(space.costs(space.nothing))
    known = [
        (t.measured_loss, sum(w * t.measurement.cost(q) for q, w in weights.items()), t.measurement.quality, t, choice)
        for t in trials
        if t.measured_loss is not None and t.measurement is not None and t.measurement.quality is not None and (choice := space.choice(t.plan)) is not None
    ]
    known.sort(key=lambda k: k[:2])
    front = [k for i, k in enumerate(known) if all(k[1] < other[1] for other in known[:i])]
    if len(front) < 2:
        return [(LEAST, MOST)]
    base = front[0][2] + sum(v.value for v in front[0][3].violations if v.quantity == "drop")  # the mildest of all stands for the original
    allowed = budget.max_drop.allowed(base)
    drop = believed_drops(trials, base, space.judged_on, allowed)

    def lost(trial: Trial) -> float:
        assert trial.measurement is not None and trial.measurement.quality is not None
        return drop(trial.measurement.quality, trial.fidelity)

    def keeps(trial: Trial) -> bool:
        if space.steps:
            return left(space.steps) * lost(trial) <= EDGE * allowed
        alike = trial.fidelity.likely_top1 if trial.fidelity is not None else None
        return lost(trial) <= allowed - (trial.half_width or 0.0) if alike is None else max(lost(trial), USUAL * (1 - alike)) <= allowed

    def reaches(trial: Trial) -> bool:
        return bool(space.steps) and left(space.steps) * lost(trial) <= REACH * allowed

    last = max((i for i, (_, _, _, trial, _) in enumerate(front) if keeps(trial)), default=None)
    if last is None:
        mildest = counted_loss(space, front[0][4], corrections)
        return [(mildest / 100, mildest)]
    beyond = max([last, *(i for i in range(last, len(front)) if reaches(front[i][3]))])
    members, before = (
        [(max(LEAST, loss), max(LEAST, counted_loss(space, choice, corrections))) for loss, _, _, _, choice in part]
        for part in (front[last : beyond + 2], front[max(last - 1, 0) : last + 1])
    )
    if len(members) == 1:
        return [(members[0][1], 1.05 * members[0][1])]
    gaps = sorted(_gaps(members), key=lambda gap: gap[0] / gap[1])
    return gaps + _gaps(before) if space.steps else gaps  # a trained one may fail on the holdout: then what comes before it is delivered


def _gaps(members: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Between ``(measured, estimated)`` losses that follow each other. By the measured ones: estimates of two plans can err by different factors, and a gap that
    they close is there all the same."""
    return [(low[1], low[1] * max(1.05, high[0] / low[0])) for low, high in itertools.pairwise(members)]


def _decided(plan: Plan) -> frozenset[tuple[str, str]]:
    return frozenset((d.site, d.method.model_dump_json() + d.method.name) for d in plan.decisions)


def _spread_order(count: int) -> list[int]:
    """0 .. count-1: the first (the safest), then by bisection."""
    order, gaps = [0], [(1, count)]
    while gaps:
        low, high = gaps.pop(0)
        if low >= high:
            continue
        middle = (low + high) // 2
        order.append(middle)
        gaps += [(low, middle), (middle + 1, high)]
    return order


def corrections_from(space: Space, trials: Sequence[Trial]) -> Corrections:
    """What the measured trials say about the space's estimates."""
    known, profiles = [], []
    for trial in trials:
        choice = space.choice(trial.plan)
        if choice is not None and trial.measurement is not None:
            measured: dict[Quantity, float] = {q: trial.measurement.cost(q) for q in ("size", "latency", "memory", "macs", "download")}
            known.append((choice, measured, trial.measured_loss))
            profiles.append((choice, trial.layer_ms))
    return replace(space.fitted(known), layers=space.observed(profiles)) if known else Corrections()


def counted(space: Space, corrections: Corrections) -> Corrections:
    """With losses as the search counts them where shapes change: those of numerics more, where training follows. What is trained in float first, and with its quantizers at the end, gets little of
    them back."""
    if not space.steps:
        return corrections
    return replace(corrections, losses={**corrections.losses, "weight": UNRECOVERED * corrections.losses.get("weight", 1.0)})


def counted_for(space: Space, choice: Choice, corrections: Corrections) -> Corrections:
    """With losses as the search counts those of ``choice``: of what keeps every shape, and is trained with its quantizers from the first step on, numerics come back, too."""
    return corrections if space.keeps_shapes(choice) else counted(space, corrections)


def counted_loss(space: Space, choice: Choice, corrections: Corrections) -> float:
    """Of a choice, as the search counts it."""
    return space.loss(choice, counted_for(space, choice, corrections))


def _counted_parts(space: Space, corrections: Corrections) -> list[tuple[Space, Corrections]]:
    """The choices that keep every shape, with losses as theirs count; and, where others count otherwise, all choices as those do."""
    if not space.steps or space.shapes_kept is space:
        return [(space, corrections)]
    return [(space, counted(space, corrections)), (space.shapes_kept, corrections)]


def _cheapest(space: Space, budget: Budget, level: float, corrections: Corrections) -> Choice | None:
    """The best choice whose loss, as it counts, is at most ``level``; ``None`` if there is none."""
    weights = budget.weights(space.costs(space.nothing, corrections))
    solved = [_within(space, part, solve(part, budget, level, known)) for part, known in _counted_parts(space, corrections)]

    def price(choice: Choice) -> float:
        costs = space.costs(choice, corrections)
        return sum(w * costs[q] for q, w in weights.items())

    return min((choice for choice in solved if choice is not None), key=price, default=None)


def _within(space: Space, part: Space, choice: Choice | None) -> Choice | None:
    """A choice of ``part``, which has fewer options, in ``space``."""
    return choice if choice is None or part is space else space.choice(part.plan(choice))


def solve(space: Space, budget: Budget, level: float, corrections: Corrections) -> Choice | None:
    """The best choice whose estimated loss is at most ``level`` and whose estimated costs keep the budget; ``None`` if there is none.

    It is looked for from two sides: from the original, and from the best choice that keeps every shape. Made linear around the original, a block that is dropped and a channel that is pruned seem to save
    floats, which would be stored in integers anyway.
    """
    starts = [space.nothing]
    whole = space.shapes_kept
    if whole is not space and (start := _within(space, whole, solve(whole, budget, level, corrections))) is not None:
        starts.append(start)
    base = space.costs(space.nothing, corrections)
    polished = [
        _polish(space, c, budget, base, level, corrections) for start in starts if (c := _climb(space, start, budget, base, level, corrections)) is not None
    ]
    fits = [c for c in polished if _feasible(space, c, budget, level, corrections)]
    return min(fits, key=lambda c: _score(space, c, budget, base, level, corrections), default=None)


def _climb(space: Space, choice: Choice, budget: Budget, base: dict[Quantity, float], level: float, corrections: Corrections) -> Choice | None:
    """The best of what is found by making costs linear around ``choice``, solving, and again around what was found."""
    excluded = exclusions(space)
    found: list[tuple[float, Choice]] = []
    if choice != space.nothing:
        found.append((_score(space, choice, budget, base, level, corrections), choice))
    for _ in range(ROUNDS):
        tables = linearised(space, choice, corrections)
        here = space.costs(choice, corrections)
        weights = budget.weights(base)
        objective = [sum((w * t[q] for q, w in weights.items()), np.zeros(len(t["loss"]))) for t in tables]
        limits: list[Limit] = [([t["loss"] for t in tables], level)]
        for q, limit in budget.limits().items():
            limits.append(([t[q] for t in tables], limit * MARGIN - here[q]))
        solved = allocate(objective, [*limits, *excluded])
        if solved is None:
            break
        new = solved[: len(space.places)]
        found.append((_score(space, new, budget, base, level, corrections), new))
        if new == choice:
            break
        choice = new
    return min(found)[1] if found else None


def exclusions(space: Space) -> list[Limit]:
    """What goes together, for the tables of ``linearised``: a weight is kept whole, or its channels are pruned, for each pair at most one of both; and neighbours that are both
    dropped are dropped together."""
    rows: list[Limit] = []
    for i, others in space.conflicts:
        whole = np.array([float(o.whole) for o in space.places[i].options])
        rows += [({i: whole, j: np.array([float(k > 0) for k in range(len(space.places[j].options))])}, 1.0) for j in others]
    for number, n in enumerate(space.neighbours):
        dropped = {i: np.array([float(o.dropped) for o in space.places[i].options]) for i in (n.first, n.second)}
        rows.append(({**dropped, len(space.places) + number: np.array([0.0, -1.0])}, 1.0))
    return rows


def linearised(space: Space, choice: Choice, corrections: Corrections) -> list[dict[str, np.ndarray]]:
    """Per place: each option's change of every cost against ``choice``, all else as it is, and its loss. After the places, one for each pair of neighbours: not both
    are dropped, or both, which costs nothing and loses more."""
    nearby = Nearby(space, choice, corrections)
    here, tables = nearby.here, []
    for index, place in enumerate(space.places):
        rows = [nearby.costs(index, j) for j in range(len(place.options))]
        table: dict[str, np.ndarray] = {q: np.array([r[q] - here[q] for r in rows]) for q in here}
        table["loss"] = np.array([o.loss * corrections.losses.get(place.site.kind, 1.0) for o in place.options])
        tables.append(table)
    blocks = corrections.losses.get("block", 1.0)
    return [*tables, *({**dict.fromkeys(here, np.zeros(2)), "loss": np.array([0.0, n.loss * blocks])} for n in space.neighbours)]


def _score(space: Space, choice: Choice, budget: Budget, base: dict[Quantity, float], level: float, corrections: Corrections) -> float:
    """The objective, with a steep price on every limit that is broken."""
    return _priced(space.costs(choice, corrections), space.loss(choice, corrections), budget, base, level) if space.legal(choice) else float("inf")


def _priced(costs: Mapping[Quantity, float], loss: float, budget: Budget, base: dict[Quantity, float], level: float) -> float:
    score = sum(w * costs[q] for q, w in budget.weights(base).items())
    over = [costs[q] / (limit * MARGIN) - 1 for q, limit in budget.limits().items()] + [loss / level - 1]
    return score + 100 * sum(max(0.0, o) for o in over)


def _feasible(space: Space, choice: Choice, budget: Budget, level: float, corrections: Corrections) -> bool:
    costs = space.costs(choice, corrections)
    return all(costs[q] <= limit for q, limit in budget.limits().items()) and space.loss(choice, corrections) <= level * 1.001


def _polish(space: Space, choice: Choice, budget: Budget, base: dict[Quantity, float], level: float, corrections: Corrections) -> Choice:
    """Single swaps on the true (not linear) estimates while they help; two rounds are enough after an exact solution."""
    best = _score(space, choice, budget, base, level, corrections)
    nearby = Nearby(space, choice, corrections)
    for _ in range(2):
        before = choice
        for index, place in enumerate(space.places):
            for j in range(len(place.options)):
                score = _priced(nearby.costs(index, j), nearby.loss(index, j), budget, base, level)
                if score < best - 1e-9 and space.legal(nearby.other(index, j)):
                    best, choice = score, nearby.other(index, j)
                    nearby = Nearby(space, choice, corrections)
        if choice == before:
            break
    return choice
