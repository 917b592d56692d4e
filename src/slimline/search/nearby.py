"""What a choice costs and loses when one place of it is another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from slimline.core.budget import Quantity
from slimline.search.space import Choice, Corrections, Option, Row, Space

UNCORRECTED = Corrections()
COUNTED: tuple[Quantity, ...] = ("size", "download", "latency", "macs")


class Nearby:
    """Costs and losses of choices that differ from ``choice`` in one place: only the layers that the place touches are counted anew.

    Example:
        >>> from slimline.core.plan import Fingerprint
        >>> from slimline.search.space import Timing
        >>> space = Space(Fingerprint(architecture="", weights=""), (), (), Timing({"float": {}}, {}, 1.0), 100, 10)
        >>> Nearby(space, ()).here["size"]
        100.0
    """

    def __init__(self, space: Space, choice: Choice, corrections: Corrections = UNCORRECTED) -> None:
        self.space, self.choice, self.corrections = space, choice, corrections
        self._rows = [space.layer(i, choice, corrections) for i in range(len(space.layers))]
        rows = [row for row in self._rows if row is not None]
        self._sums = [sum(column) for column in zip(*rows, strict=True)] or [0.0] * len(Row._fields)
        self._largest = sorted(((row.values, i) for i, row in enumerate(self._rows) if row is not None), reverse=True)
        self._gone = space.gone(choice)
        self.loss_here = space.loss(choice, corrections)
        self.here = space.totals(self._sums, self._largest[0][0] if self._largest else 0.0, choice, corrections)

    def other(self, place: int, option: int) -> Choice:
        return (*self.choice[:place], option, *self.choice[place + 1 :])

    def costs(self, place: int, option: int) -> dict[Quantity, float]:
        """With this option there."""
        if option == self.choice[place]:
            return self.here
        choice, touched = self.other(place, option), self.space.touched[place]
        sums, most = list(self._sums), 0.0
        for i in touched:
            new = self.space.layer(i, choice, self.corrections)
            for row, sign in ((self._rows[i], -1), (new, 1)):
                if row is not None:
                    sums = [total + sign * value for total, value in zip(sums, row, strict=True)]
            most = max(most, new.values if new is not None else 0.0)
        untouched = next((values for values, i in self._largest if i not in touched), 0.0)
        return self.space.totals(sums, max(most, untouched), choice, self.corrections)

    def loss(self, place: int, option: int) -> float:
        """With this option there."""
        site, options = self.space.places[place].site, self.space.places[place].options
        old, new = options[self.choice[place]], options[option]
        if old.dropped or new.dropped or old.drops or new.drops:  # what lies inside loses nothing more
            return self.space.loss(self.other(place, option), self.corrections)
        factor = 0.0 if place in self._gone else self.corrections.losses.get(site.kind, 1.0)
        return self.loss_here + factor * (new.loss - old.loss)


def pruned(space: Space, spared: Callable[[Option], bool] = lambda _: False, counted: Sequence[Quantity] = COUNTED) -> Space:
    """The same space without options that another at the same site, which may stand wherever they may, beats in loss and all ``counted`` costs, all else as it is; but for the ``spared``.

    Milliseconds are measured anew in each run: where nobody asks about them, they must not decide what there is to choose from.
    """
    places, nearby = [], Nearby(space, space.nothing)
    for index, place in enumerate(space.places):
        corners = []
        for j, option in enumerate(place.options):
            costs = nearby.costs(index, j)
            corners.append((*(costs[q] for q in counted), option.loss))
        beaten = [
            any(
                b != a and all(x <= y for x, y in zip(b, a, strict=True)) and _stands_for(other, option, timed="latency" in counted)
                for other, b in zip(place.options, corners, strict=True)
            )
            for option, a in zip(place.options, corners, strict=True)
        ]
        kept = [j for j, option in enumerate(place.options) if j == 0 or not beaten[j] or spared(option)]
        places.append(replace(place, options=tuple(place.options[j] for j in kept)))
    return replace(space, places=tuple(places))


def _stands_for(other: Option, option: Option, *, timed: bool) -> bool:
    """Whether ``other`` may be chosen wherever ``option`` may. What goes only with whole shapes stands for nothing that goes with pruned channels, too, and factors stand for no weight that keeps
    its shape: ResNet-20's last layer had factors and 8 bits to choose from, and where shapes were to be kept 37 KB of 8 bits.

    ``timed``: milliseconds count. Then nothing that runs in floats stands for what runs in integers, or the other way round: between integer layers a float one costs conversions, and alone
    (LiteRT tells no time of a convolution of 1 x 1) it may seem as fast.
    """
    alike = not timed or (option.execute == "integer") == (other.execute == "integer")
    return alike and (option.whole or not other.whole) and (bool(option.factors) or not other.factors)
