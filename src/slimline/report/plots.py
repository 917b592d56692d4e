"""Where things lie in a plot: axes, ticks, marks and labels, in percent of the plotting area.

Positions in percent let one drawing fit a phone and a wide screen with text of the same size, without
a script that measures the window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["trial", "front", "chosen", "reference", "original"]
NARROW, WIDE = (272.0, 300.0), (860.0, 340.0)  # pixels of the plotting area on a phone, and on a desk
LETTER, LINE = 6.6, 16.0  # pixels that a label's letter and line take
LEAST_GAP = 0.16  # of the axis between two logarithmic ticks
# Where a label may stand, best first: how the text is anchored, and its middle line's distance from the mark's centre in pixels.
SIDES = (("start", 11, 0), ("end", -11, 0), ("middle", 0, -19), ("middle", 0, 19), ("start", 8, -14), ("start", 8, 14), ("end", -8, -14), ("end", -8, 14))
SERIES = ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of ticks within a power of ten, finest first


@dataclass(frozen=True)
class Tick:
    """``at``: percent from the axis' low end."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A range, and how values lie in it.

    Example:
        >>> Axis(1.0, 100.0, True, "bytes", ()).place(10.0)
        50.0
    """

    low: float
    high: float
    log: bool
    title: str
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float:
        """Percent from the low end; what lies beyond an end is placed on it."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        share = math.log(value / low) / math.log(high / low) if self.log else (value - low) / (high - low)
        return round(100 * share, 2)

    def beyond(self, value: float) -> bool:
        """Whether the value does not fit in."""
        return not self.low <= value <= self.high


def axis(values: Iterable[float], title: str, text: Callable[[float], str], *, log: bool = False, margin: float = 0.06) -> Axis:
    """An axis that holds all values with some air at its ends; logarithmic if asked, all are positive and they span a factor of two.

    Raises:
        ValueError: no values.
    """
    found = list(values)
    low, high = min(found), max(found)
    if log and low > 0 and high / low >= 2:
        air = (high / low) ** margin
        low, high = low / air, high * air
        at = _log_ticks(low, high)
    else:
        log = False
        air = margin * (high - low) or 0.5 * abs(high) or 1.0
        low, high = low - air if low < 0 or low - air > 0 else 0.0 if low > 0 else low - air / 2, high + air
        at = _even_ticks(low, high)
    bare = Axis(low, high, log, title, ())
    return Axis(low, high, log, title, tuple(Tick(bare.place(v), text(v)) for v in at))


def _even_ticks(low: float, high: float) -> list[float]:
    """Four to six multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 4.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """The finest series whose ticks stay apart on a phone; whole powers, thinned, where none does."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for series in SERIES:
        ticks = [float(m * 10.0**p) for p in powers for m in series if low <= m * 10.0**p <= high]
        if all(math.log(b / a) >= LEAST_GAP * math.log(high / low) for a, b in itertools.pairwise(ticks)):
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


@dataclass(frozen=True)
class Mark:
    """A point of a plot. ``tip``: its title and then its facts; ``note``: what stands beside it, ``""`` for nothing; ``side``: where (see ``SIDES``)."""

    x: float
    y: float
    kind: Kind
    tip: tuple[str, ...]
    note: str = ""
    beyond: bool = False
    side: tuple[str, int, int] | None = None
    wide_only: bool = False

    @property
    def spoken(self) -> str:
        """The tip as one line, for a screen reader."""
        return "; ".join(self.tip)


@dataclass(frozen=True)
class Line:
    """From one place to another, in percent from the left and from the top."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str = ""


@dataclass(frozen=True)
class Plot:
    """One drawing: ``y`` counts from the top in its marks and lines, from the bottom in its axis' ticks."""

    key: str
    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...] = ()
    limits: tuple[Line, ...] = ()
    beyond: int = 0


def placed(key: str, title: str, x: Axis, y: Axis, found: list[tuple[float, float, Mark]], limit_x: float | None, limit_y: float | None) -> Plot:
    """A plot of marks at ``(x, y)`` values, with the staircase of the trials' front and the limits that lie inside.

    ``limit_x``, ``limit_y``: what was asked for, ``None`` for no limit.
    """
    marks = [Mark(x.place(a), round(100 - y.place(b), 2), m.kind, m.tip, m.note, y.beyond(b) or x.beyond(a)) for a, b, m in found]
    trials = [(m.x, m.y) for m in marks if m.kind in ("trial", "front", "chosen") and not m.beyond]
    limits = []
    if limit_x is not None and not x.beyond(limit_x):
        limits.append(Line(x.place(limit_x), 0, x.place(limit_x), 100, "limit"))
    if limit_y is not None and not y.beyond(limit_y):
        at = round(100 - y.place(limit_y), 2)
        limits.append(Line(0, at, 100, at, "allowed" if key != "both" else "limit"))
    return Plot(key, title, x, y, label(marks, limits), stairs(trials), tuple(limits), sum(m.beyond for m in marks))


def stairs(corners: Iterable[tuple[float, float]]) -> tuple[Line, ...]:
    """The staircase through the points (percent from left, from top) that none beats in being left and low.

    Example:
        >>> [(s.x1, s.y1, s.x2, s.y2) for s in stairs([(10, 20), (30, 60), (40, 30)])]
        [(10, 20, 30, 20), (30, 20, 30, 60)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(corners, key=lambda c: (c[0], -c[1])):
        if not best or y > best[-1][1]:  # from the top: a larger number is lower
            best.append((x, y))
    return tuple(line for (x1, y1), (x2, y2) in itertools.pairwise(best) for line in (Line(x1, y1, x2, y1), Line(x2, y1, x2, y2)))


def label(marks: Sequence[Mark], limits: Sequence[Line] = ()) -> tuple[Mark, ...]:
    """Each noted mark with the side its label goes to, so that none covers a mark that counts, what a limit is called or another label, and as few other trials as can be.

    A label that finds room on a wide screen only is told so; one that finds none anywhere has no side (the tip still names it).
    """
    sides: dict[int, tuple[tuple[str, int, int], bool]] = {}
    order = sorted((i for i, m in enumerate(marks) if m.note), key=lambda i: ("chosen", "original", "reference", "front", "trial").index(marks[i].kind))
    for frame, wide in ((NARROW, False), (WIDE, True)):
        taken = (
            [_around(m, frame) for m in marks if m.kind != "trial"]
            + [_named(line, frame) for line in limits]
            + [_box(marks[i], side, frame) for i, (side, _) in sides.items()]
        )
        trials = [_around(m, frame) for m in marks if m.kind == "trial"]
        for i in (i for i in order if i not in sides):
            free = [s for s in SIDES if _inside(b := _box(marks[i], s, frame), frame) and not any(_overlap(b, other) for other in taken)]
            if free:
                side = min(free, key=lambda s: sum(_overlap(_box(marks[i], s, frame), t) for t in trials))  # the first of those that hide fewest trials
                sides[i] = (side, wide)
                taken.append(_box(marks[i], side, frame))
    return tuple(Mark(m.x, m.y, m.kind, m.tip, m.note, m.beyond, *sides.get(i, (None, False))) for i, m in enumerate(marks))


Box = tuple[float, float, float, float]


def _around(mark: Mark, frame: tuple[float, float]) -> Box:
    x, y = mark.x / 100 * frame[0], mark.y / 100 * frame[1]
    return x - 6, y - 6, x + 6, y + 6


def _box(mark: Mark, side: tuple[str, int, int], frame: tuple[float, float]) -> Box:
    """Left, top, right, bottom of a label in pixels."""
    anchor, dx, dy = side
    x, y, width = mark.x / 100 * frame[0] + dx, mark.y / 100 * frame[1] + dy, LETTER * len(mark.note)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - LINE / 2, left + width, y + LINE / 2


def _named(limit: Line, frame: tuple[float, float]) -> Box:
    """Where a limit's own text stands: over a level line's right end, or right of an upright one's foot."""
    x, y, width = limit.x1 / 100 * frame[0], limit.y1 / 100 * frame[1], LETTER * len(limit.text)
    return (x + 4, frame[1] - 20, x + 4 + width, frame[1] - 4) if limit.x1 == limit.x2 else (frame[0] - 4 - width, y - 18, frame[0] - 4, y - 2)


def _inside(box: Box, frame: tuple[float, float]) -> bool:
    return box[0] >= 0 and box[1] >= -4 and box[2] <= frame[0] + 8 and box[3] <= frame[1]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
