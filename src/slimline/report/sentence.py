"""The verdict in one sentence, and how figures are written everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from slimline.core.result import DropInterval, Verdict
from slimline.core.trial import Measurement


def bytes_text(count: float) -> str:
    """``217 KB``, ``1.46 MB``; KB is 1,000 bytes."""
    if count < 1_000:
        return f"{count:.0f} B"
    if count < 1_000_000:
        return f"{count / 1e3:.3g} KB" if count < 100_000 else f"{count / 1e3:.0f} KB"
    return f"{count / 1e6:.3g} MB"


def time_text(milliseconds: float) -> str:
    """``0.343 ms``, ``12.4 ms``, ``1.2 s``."""
    return f"{milliseconds / 1e3:.3g} s" if milliseconds >= 1_000 else f"{milliseconds:.3g} ms"


def ratio_text(before: float, after: float, better: str, worse: str) -> str:
    """``4.1x smaller (24 % of the original)``."""
    if after <= 0 or before <= 0:
        return "not comparable"
    ratio = before / after
    return f"{ratio:.2g}x {better} ({after / before:.0%} of the original)".replace("%", " %") if ratio >= 1 else f"{1 / ratio:.2g}x {worse} ({after / before:.0%} of the original)".replace("%", " %")


def points(fraction: float) -> str:
    """A difference of quality in points: ``0.62``."""
    return f"{100 * fraction:.2f}"


def sentence(verdict: Verdict, baseline: Measurement, compressed: Measurement | None, drop: DropInterval | None, obstacles: Sequence[str] = ()) -> str:
    """One sentence of verdict."""
    if compressed is None:
        return f"{verdict.capitalize()}: nothing was delivered. {'; '.join(obstacles)}"
    gains = (
        f"{ratio_text(baseline.size_bytes, compressed.size_bytes, 'smaller', 'larger')}, {bytes_text(compressed.size_bytes)}; "
        f"{ratio_text(baseline.latency_ms.median, compressed.latency_ms.median, 'faster', 'slower')}, {time_text(compressed.latency_ms.median)}"
    )
    if drop is None:
        certainty = "the drop is not certified"
    elif verdict == "pass":
        certainty = f"the drop is at most {points(drop.upper_95)} points with 95 % confidence, {points(drop.allowed)} are allowed"
    elif drop.lower_95 > drop.allowed:
        certainty = f"the drop is at least {points(drop.lower_95)} points with 95 % confidence, {points(drop.allowed)} are allowed"
    else:
        more = f", it takes {drop.needed_samples:,} samples to decide" if drop.needed_samples else ""
        certainty = f"the drop is {points(drop.observed)} points, between {points(drop.lower_95)} and {points(drop.upper_95)} on {drop.samples:,} samples, {points(drop.allowed)} are allowed{more}"
    why = f" In the way: {'; '.join(obstacles)}." if verdict == "fail" and obstacles else ""
    return f"{verdict.capitalize()}: {gains}; {certainty}.{why}"
