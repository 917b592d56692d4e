"""Which of several references counts: for bytes the smallest, for latency the fastest, among those that keep the quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WITHIN = 0.01  # one point


@dataclass(frozen=True)
class Candidate:
    """One variant, measured. ``quality`` is ``None`` without data: then every variant counts."""

    label: str
    size_bytes: int
    latency_ms: float
    quality: float | None


@dataclass(frozen=True)
class Choice:
    """``within``: whether any variant keeps the quality; if none does, both are the one of the best quality."""

    smallest: Candidate
    fastest: Candidate
    within: bool


def choose(candidates: Sequence[Candidate], baseline_quality: float | None) -> Choice | None:
    """The references among ``candidates``; ``None`` if there are none.

    One point is 0.01 for a metric in [0, 1], else 1 % of the baseline's absolute value.

    Example:
        >>> a, b, c = Candidate("a", 90, 2.0, 0.89), Candidate("b", 99, 1.0, 0.90), Candidate("c", 50, 0.5, 0.70)
        >>> choice = choose([a, b, c], 0.90)
        >>> choice.smallest.label, choice.fastest.label
        ('a', 'b')
    """
    if not candidates:
        return None
    if baseline_quality is None:
        near = list(candidates)
    else:
        allowed = WITHIN if 0.0 <= baseline_quality <= 1.0 else WITHIN * abs(baseline_quality)
        # the slack absorbs the last bit of a mean over samples: 0.90 - 0.89 is above 0.01 in floating point
        near = [c for c in candidates if c.quality is None or baseline_quality - c.quality <= allowed + 1e-9]
    if not near:
        best = max(candidates, key=lambda c: (c.quality if c.quality is not None else float("-inf"), -c.size_bytes))
        return Choice(best, best, within=False)
    smallest = min(near, key=lambda c: (c.size_bytes, c.latency_ms, c.label))
    fastest = min(near, key=lambda c: (c.latency_ms, c.size_bytes, c.label))
    return Choice(smallest, fastest, within=True)
