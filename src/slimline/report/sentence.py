"""The verdict in one sentence, and how figures are written everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from slimline.core.budget import NOISE, Quantity, Violation
from slimline.core.result import DropInterval, Elsewhere, Verdict
from slimline.core.trial import Measurement

MINIMISED = {"size": "file size", "download": "download size", "latency": "latency", "memory": "memory", "macs": "multiply-adds"}
NAMES = {"size": "file", "download": "download", "latency": "latency", "memory": "memory", "macs": "multiply-adds", "loss": "drop"}
SHRINKS: dict[str, tuple[str, str]] = {
    "size": ("smaller", "larger"),
    "download": ("smaller", "larger"),
    "memory": ("smaller", "larger"),
    "macs": ("fewer", "more"),
}


def bytes_text(count: float) -> str:
    """``217 KB``, ``1.46 MB``; KB is 1,000 bytes."""
    return f"{count:.0f} B" if count < 999.5 else _scaled(count, ("B", "KB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """``40.6 M``, ``2.1 k``: a number of things, short."""
    return f"{count:.0f}" if count < 999.5 else _scaled(count, ("", "k", "M", "G", "T"))


def time_text(milliseconds: float) -> str:
    """``0.343 ms``, ``12.4 ms``, ``1.2 s``."""
    return f"{milliseconds / 1e3:.3g} s" if milliseconds >= 999.5 else f"{milliseconds:.3g} ms"


def estimate_text(text: str, estimated: bool) -> str:
    """``0.343 ms (estimate)``, ``latency (estimate)``: figures, and heads of figures, of a device that nothing ran on."""
    return f"{text} (estimate)" if estimated else text


def latency_text(latency_ms: float, estimated: bool) -> str:
    """A latency as it is written everywhere: ``0.343 ms``, or ``0.343 ms (estimate)``. Where a head says so already, ``time_text`` is enough."""
    return estimate_text(time_text(latency_ms), estimated)


def quantity_text(quantity: str, value: float, estimated: bool = False) -> str:
    """A value in its unit: ``217 KB``, ``0.343 ms``, ``0.02 nats``; ``estimated``: what a latency is, where no name beside it says so."""
    if quantity == "loss":
        return f"{value:.2g} nats"
    return latency_text(value, estimated) if quantity == "latency" else count_text(value) if quantity == "macs" else bytes_text(value)


def _scaled(count: float, units: Sequence[str]) -> str:
    """Three digits and the unit that they are of."""
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1e3, power + 1
    return f"{count:,.0f} {units[power]}" if count >= 100 else f"{count:.3g} {units[power]}"


def times_text(ratio: float) -> str:
    """``4.1x``, ``23x``, ``1,050x``: a factor above 1."""
    return f"{ratio:.1f}x" if ratio < 9.95 else f"{ratio:,.0f}x"


def percent_text(share: float) -> str:
    """``24 %``, ``4.8 %``: enough digits to tell small shares apart."""
    return f"{100 * share:,.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def change_text(before: float, after: float, better: str, worse: str, same: float = 0.005) -> str:
    """``4.1x smaller``; ``unchanged`` within the share ``same``."""
    if after <= 0 or before <= 0:
        return "not comparable"
    ratio = before / after
    if abs(ratio - 1) < same:
        return "unchanged"
    if 1 / 1.05 < ratio < 1.05:  # as a factor these would all read 1.0x
        return f"{percent_text(abs(after / before - 1))} {better if ratio > 1 else worse}"
    return f"{times_text(ratio)} {better}" if ratio > 1 else f"{times_text(1 / ratio)} {worse}"


def faster_text(before_ms: float, after_ms: float) -> str:
    """``2.8x faster``; ``unchanged`` within the noise of a latency."""
    return change_text(before_ms, after_ms, "faster", "slower", NOISE)


def ratio_text(before: float, after: float, better: str, worse: str, same: float = 0.005) -> str:
    """Both ways: ``4.1x smaller (24 % of the original)``."""
    change = change_text(before, after, better, worse, same)
    return change if change in ("not comparable", "unchanged") else f"{change} ({percent_text(after / before)} of the original)"


def points(fraction: float) -> str:
    """A difference of quality in points: ``0.62``."""
    return f"{100 * fraction + 0.0:.2f}".replace("-0.00", "0.00")


def in_points(quality: float | None) -> bool:
    """Whether differences from this quality can be told in points: only a metric in [0, 1] has them."""
    return quality is not None and 0.0 <= quality <= 1.0


def amount_text(difference: float, quality: float | None) -> str:
    """A difference from ``quality``: ``0.62`` points for a metric in [0, 1], else in metric units."""
    return points(difference) if in_points(quality) else f"{difference:.3g}"


def difference_text(difference: float, quality: float | None) -> str:
    """With its unit: ``0.62 points``, or ``3.1`` in metric units."""
    return amount_text(difference, quality) + (" points" if in_points(quality) else "")


def is_gain(drop: float, quality: float | None) -> bool:
    """Whether a drop, or a limit of one, is negative as it would be written."""
    return amount_text(drop, quality).startswith("-")


def most_text(upper: float, quality: float | None) -> str:
    """An upper limit of what was lost: ``at most 0.62 points lost``; below zero it is a lower limit of what was gained: ``at least 0.03 points gained``."""
    return f"at least {difference_text(-upper, quality)} gained" if is_gain(upper, quality) else f"at most {difference_text(upper, quality)} lost"


def least_text(lower: float, quality: float | None) -> str:
    """A lower limit of what was lost: ``at least 0.62 points lost``, ``at most 0.03 points gained``."""
    return f"at most {difference_text(-lower, quality)} gained" if is_gain(lower, quality) else f"at least {difference_text(lower, quality)} lost"


def amount_of(quantity: Quantity, measured: Measurement) -> str:
    """What a measurement has of bytes or multiply-adds: ``217 KB``, ``378 k``."""
    return (count_text if quantity == "macs" else bytes_text)(measured.cost(quantity))


def sentence(
    verdict: Verdict,
    baseline: Measurement,
    compressed: Measurement | None,
    drop: DropInterval | None,
    obstacles: Sequence[str] = (),
    minimize: Quantity = "latency",
) -> str:
    """One sentence of verdict: file and latency, and before them what was minimised where that is something else. A second where the original has less of that."""
    if compressed is None:
        return "; ".join([f"{verdict.capitalize()}: nothing was delivered", *obstacles]) + "."
    lead = ""
    if minimize not in ("size", "latency"):
        name = "multiply-adds" if minimize == "macs" else minimize
        lead = f"{name} {ratio_text(baseline.cost(minimize), compressed.cost(minimize), *SHRINKS[minimize])}, {amount_of(minimize, compressed)}; file "
    gains = (
        f"{lead}{ratio_text(baseline.size_bytes, compressed.size_bytes, *SHRINKS['size'])}, {bytes_text(compressed.size_bytes)}; "
        f"{_latency(baseline, compressed)}, {latency_text(compressed.latency_ms.median, compressed.latency_ms.estimated)}"
    )
    why = f" In the way: {'; '.join(obstacles)}." if verdict == "fail" and obstacles else ""
    worse = compressed.cost(minimize) > (1 + NOISE) * baseline.cost(minimize)
    instead = "" if minimize == "size" else ", or ask for --minimize size"
    note = f" What was to be minimised, {NAMES[minimize]}, is less in the original: keep that{instead}." if worse else ""
    return f"{verdict.capitalize()}: {gains}; {_certainty(verdict, drop, baseline.quality)}.{why}{note}"


def obstacle_texts(violations: Sequence[Violation], estimated: bool, drop: DropInterval | None, quality: float | None) -> tuple[str, ...]:
    """What stands in the way of a pass, with units: every limit but the drop's that is broken, and a drop that may be more than allowed. ``estimated``: what the latency is.

    Example:
        >>> obstacle_texts([Violation(quantity="size", value=300_400, limit=300_000), Violation(quantity="latency", value=0.262, limit=0.2)], False, None, None)
        ('file is 400 B above the limit of 300 KB', 'latency is 0.262 ms, the limit 0.2 ms')
    """
    said = []
    for v in violations:
        if v.quantity != "drop":
            value, limit = quantity_text(v.quantity, v.value, estimated), quantity_text(v.quantity, v.limit)
            alike = quantity_text(v.quantity, v.value) == limit
            name = f"{NAMES[v.quantity]} {'are' if v.quantity == 'macs' else 'is'}"
            said.append(
                f"{name} {quantity_text(v.quantity, v.value - v.limit, estimated)} above the limit of {limit}"
                if alike
                else f"{name} {value}, the limit {limit}"
            )
    if drop is not None and drop.upper_95 > drop.allowed:
        observed, upper, allowed = (difference_text(x, quality) for x in (drop.observed, drop.upper_95, drop.allowed))
        decide = f"; at this drop it takes {drop.needed_samples:,} to decide" if drop.needed_samples else ""
        said.append(f"the drop is {observed} with a 95 % limit of {upper}, allowed is {allowed}, on {number_of(drop.samples, 'sample')}{decide}")
    return tuple(said)


def _latency(baseline: Measurement, compressed: Measurement) -> str:
    text = ratio_text(baseline.latency_ms.median, compressed.latency_ms.median, "faster", "slower", NOISE)
    return "as fast as the original" if text == "unchanged" else text


def _certainty(verdict: Verdict, drop: DropInterval | None, quality: float | None) -> str:
    """What is known about the drop, and how surely."""
    if drop is None:
        return "the drop is not certified"

    def number(value: float) -> str:
        return amount_text(value, quality)

    allowed, unit = f"{number(drop.allowed)} are allowed", " points" if in_points(quality) else ""
    if verdict != "inconclusive" and drop.upper_95 <= drop.allowed:  # inconclusive below the allowance: on samples that the original has seen
        if is_gain(drop.upper_95, quality):
            return (
                f"it is better than the original by at least {number(-drop.upper_95)}{unit} with 95 % confidence, a drop of {number(drop.allowed)} is allowed"
            )
        return f"the drop is at most {number(drop.upper_95)}{unit} with 95 % confidence, {allowed}"
    if drop.lower_95 > drop.allowed:
        return f"the drop is at least {number(drop.lower_95)}{unit} with 95 % confidence, {allowed}"
    more = f", it takes {drop.needed_samples:,} samples to decide" if drop.needed_samples else ""
    limits = f"between {number(drop.lower_95)} and {number(drop.upper_95)} on {number_of(drop.samples, 'sample')}, {allowed}{more}"
    if is_gain(drop.observed, quality):
        return f"it seems better than the original by {number(-drop.observed)}{unit}, the drop lies {limits}"
    return f"the drop is {number(drop.observed)}{unit}, {limits}"


def only_text(elsewhere: Elsewhere, quality: float | None) -> str:
    """Which classes, or samples, a plan is for, and what it costs on the others."""
    names = listed([str(c) for c in elsewhere.classes])
    whom = [f"class{'es' if len(elsewhere.classes) != 1 else ''} {names} alone"] if elsewhere.classes else []
    said = f"This is for {', '.join([*whom, *(['samples as sample_weights weighs them'] if elsewhere.weighted else [])])}"
    if elsewhere.drop is None or elsewhere.upper_95 is None:
        return f"{said}; what it costs on others was not measured."
    change = "lost" if elsewhere.drop >= 0 else "gained"
    others = "the samples left out" if elsewhere.weighted else "samples of the others"
    return f"{said}; on {others} {difference_text(abs(elsewhere.drop), quality)} are {change} ({elsewhere.samples:,} samples, with 95 % confidence {most_text(elsewhere.upper_95, quality)})."


def number_of(count: int, thing: str, things: str = "") -> str:
    """``1 block``, ``1,200 blocks``; ``things``: the plural where it is not just an s more."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def listed(names: Sequence[str]) -> str:
    """``1``, ``1 and 5``, ``1, 5 and 7``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
