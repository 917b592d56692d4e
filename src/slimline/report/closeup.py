"""What compression changed up close, in words and tables."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from slimline.core.result import CloseUp, GroupDrop, Report
from slimline.report.sentence import amount_text, difference_text, in_points

GROUPS_SHOWN, SAMPLES_SHOWN = 10, 20
LISTED = 40  # lost samples on the page, before the rest is folded away
LIMITS = "lower limits hold for all of them together (Bonferroni), upper ones each for its own, at 95 %"


def lines(seen: CloseUp, metric: str) -> list[str]:
    """For a terminal."""
    said = [f"{metric} on {seen.samples:,} {seen.split} samples: {seen.before:.4f} before, {seen.after:.4f} after"]
    if seen.lost or seen.won:
        said.append(f"lost: {len(seen.lost):,} samples that the original gets right ({indices(seen.lost) or 'none'}); won: {len(seen.won):,}")
    for kind, groups in (("class", seen.classes), ("slice", seen.slices)):
        if groups:
            worst, unit = groups[:GROUPS_SHOWN], "points; " if in_points(seen.before) else ""
            kinds = f"{kind}{'es' if kind == 'class' else 's'}"
            which = (
                f"all {groups[0].of} {kinds}, those that lost most first"
                if len(worst) == groups[0].of
                else f"the {len(worst)} of {groups[0].of} {kinds} that lost most"
            )
            said.append(f"{which} ({unit}{LIMITS}):")
            said += [f"  {kind} {g.label}: {_short(g, g.observed)} on {g.samples:,} samples, {_short(g, g.lower_95)} to {_short(g, g.upper_95)}" for g in worst]
    if seen.calibration is not None:
        said.append(f"calibration error (ECE): {seen.calibration[0]:.4f} before, {seen.calibration[1]:.4f} after")
    return said + [f"with {name}: {before} before, {after} after ({more})" for name, before, after, more in disturbances(seen)]


def indices(found: tuple[int, ...], most: int = SAMPLES_SHOWN) -> str:
    """``3, 17, 40 and 12 more``."""
    return ", ".join(map(str, found[:most])) + (f" and {len(found) - most:,} more" if len(found) > most else "")


def groups(found: tuple[GroupDrop, ...], kind: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of classes or slices, the worst first."""
    rows: list[tuple[str, ...]] = [(g.label, f"{g.samples:,}", _short(g, g.observed), f"{_short(g, g.lower_95)} to {_short(g, g.upper_95)}") for g in found]
    return (kind, "samples", "lost, points", "95 % limits"), rows


def _short(group: GroupDrop, drop: float) -> str:
    return f"{100 * drop + 0.0:.1f}".replace("-0.0", "0.0") if abs(drop) < 5e-4 else f"{100 * drop:.1f}"


def disturbances(seen: CloseUp) -> list[tuple[str, ...]]:
    """Name, quality before and after, and how much more is lost than without it; on the same samples."""
    if not seen.disturbed:
        return []
    plain = seen.disturbed[0]
    rows: list[tuple[str, ...]] = []
    for d in seen.disturbed[1:]:
        more = (d.before - d.after) - (plain.before - plain.after)
        rows.append(
            (
                d.name,
                f"{d.before:.4f}",
                f"{d.after:.4f}",
                "as much lost as without"
                if abs(more) < 5e-5
                else f"{difference_text(abs(more), plain.before)} {'more' if more > 0 else 'less'} lost than without",
            )
        )
    return rows


def ece_text(seen: CloseUp) -> str:
    """What the calibration error became, for someone who does not know the term."""
    if seen.calibration is None:
        return ""
    before, after = seen.calibration
    word = "as before" if abs(after - before) < 0.005 else "less well calibrated" if after > before else "better calibrated"
    return (
        f"Expected calibration error {before:.4f} before, {after:.4f} after: confidence and accuracy lie {amount_text(before, 1.0)} points apart on average, then"
        f" {amount_text(after, 1.0)}; {word}."
    )


@dataclass(frozen=True)
class Section:
    """What the page says. ``groups``: (title, how many there are in all, head, rows)."""

    told: str
    lost: str
    rest: str
    groups: list[tuple[str, int, tuple[str, ...], list[tuple[str, ...]]]]
    shaken: list[tuple[str, ...]]
    shaken_samples: int
    calibration: str


def section(report: Report) -> Section | None:
    """What the page shows; ``None`` where nobody looked."""
    seen = report.close_up
    if seen is None:
        return None
    told = f"Of {seen.samples:,} {seen.split} samples the file gets {len(seen.lost):,} wrong that the original gets right, and {len(seen.won):,} right that the original gets wrong."
    named = (("Classes", "class", seen.classes), ("Slices", "slice", seen.slices))
    plain = seen.disturbed[0] if seen.disturbed else None
    return Section(
        told=told if seen.lost or seen.won else f"On {seen.samples:,} {seen.split} samples: {seen.before:.4f} before, {seen.after:.4f} after.",
        lost=indices(seen.lost, LISTED),
        rest=", ".join(map(str, seen.lost[LISTED:])),
        groups=[(title, found[0].of, *groups(found, kind)) for title, kind, found in named if found],
        shaken=([] if plain is None else [("none", f"{plain.before:.4f}", f"{plain.after:.4f}", "")]) + list(disturbances(seen)),
        shaken_samples=plain.samples if plain is not None else 0,
        calibration=ece_text(seen),
    )


def png(image: npt.NDArray[np.float32]) -> bytes:
    """An image ``[1 or 3, H, W]`` of any range as PNG, its own least and greatest value black and white.

    References:
        PNG specification, third edition (W3C, 2025): signature, IHDR, IDAT and IEND, filter type 0.
    """
    low, high = float(image.min()), float(image.max())
    levels = np.round(255 * (image - low) / max(high - low, 1e-12)).astype(np.uint8).transpose(1, 2, 0)
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
