"""The same everywhere: one width for all channels, one format for all weights. What handwork begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from slimline.core.budget import Budget
from slimline.core.formats import Affine
from slimline.core.plan import Plan
from slimline.core.trial import Trial
from slimline.search.space import Choice, Place, Space

KEEPS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
BITS = (8, 4)


class Uniform:
    """Every pair of a width and a number of bits, the mildest first; a reference, not a contender."""

    name: ClassVar[str] = "uniform"

    def __init__(self, levels: int = 12) -> None:
        self.levels = levels

    def propose(self, space: Space, budget: Budget, trials: Sequence[Trial]) -> Plan | None:
        """The next plan of the ladder that keeps the budget on paper, or ``None``."""
        tried = {t.plan.digest for t in trials}
        if sum(t.origin.startswith(self.name) for t in trials) >= self.levels:
            return None
        for keep in KEEPS:
            for bits in BITS:
                choice = uniform_choice(space, keep, bits)
                costs = space.costs(choice)
                plan = space.plan(choice)
                if plan.digest not in tried and all(costs[q] <= limit for q, limit in budget.limits().items()):
                    return plan
        return None


def uniform_choice(space: Space, keep: float, bits: int) -> Choice:
    """The options nearest to ``keep`` of all channels, and ``bits`` for every weight (integer execution where it is offered)."""
    return tuple(_width(p, keep) if p.site.kind == "channels" else _format(p, bits) if p.site.kind == "weight" else 0 for p in space.places)


def _width(place: Place, keep: float) -> int:
    widths = [(abs((o.channels or 0) / place.site.shape[0] - keep), i) for i, o in enumerate(place.options) if o.channels is not None]
    return min(widths)[1] if widths else 0


def _format(place: Place, bits: int) -> int:
    fits = [(o.execute != "integer", i) for i, o in enumerate(place.options) if isinstance(o.format, Affine) and o.format.bits == bits and not o.factors]
    return min(fits)[1] if fits else 0
