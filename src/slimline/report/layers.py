"""The strip of layers: each weight's bytes, milliseconds, bits and width before and after."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slimline.core.result import DecisionRecord, Report
from slimline.report import prices, rows
from slimline.report.sentence import estimate_text

BITS = (("float", "float"), ("8", "8 bits"), ("4", "4 bits"), ("2", "3 bits and fewer"), ("gone", "removed"))


@dataclass(frozen=True)
class Layer:
    """A column of the strip: bars in percent of the largest in the model, ``None`` where it was not measured."""

    tip: tuple[str, ...]
    bits: str
    key: str
    bytes_before: float
    bytes_after: float | None
    ms_before: float
    ms_after: float | None
    width: float
    rank: str

    @property
    def spoken(self) -> str:
        return "; ".join(self.tip)


def layers_of(report: Report) -> list[Layer]:
    weights = [d for d in report.decisions if d.op not in ("channels", "block", "input", "model")]
    most_bytes = max((d.cost.bytes_before or 0 for d in weights), default=0) or 1
    most_ms = max((max(d.cost.ms_before or 0.0, d.cost.ms_measured or 0.0) for d in weights), default=0.0) or 1.0
    return [_layer(report, d, most_bytes, most_ms) for d in weights]


def _layer(report: Report, d: DecisionRecord, most_bytes: float, most_ms: float) -> Layer:
    def share(value: float | None, most: float) -> float | None:
        return None if value is None else round(min(100.0, 100 * value / most), 2)

    gone = d.after == "removed"
    key = "gone" if gone else "float" if d.bits is None or d.bits > 8 else "8" if d.bits > 4 else "4" if d.bits == 4 else "2"
    kept = 0.0 if gone else _kept(d.before, d.after)
    c = d.cost
    facts = (
        f"{d.site}: {d.label or rows.method_text(d)}", d.before if d.before == d.after else f"{d.before} → {d.after}", "" if d.bits is None else f"{rows.bits_text(d)}{' bits' if d.bits != 32 else ''}", "" if d.rank is None else f"rank {d.rank}",
        "" if c.bytes_before is None else f"{c.bytes_before:,} → {'not measured' if c.bytes_measured is None else f'{c.bytes_measured:,}'} bytes",
        "" if c.ms_before is None else estimate_text(f"{c.ms_before:.4f} → {'not measured' if c.ms_measured is None else f'{c.ms_measured:.4f}'} ms", report.baseline.latency_ms.estimated),
        _sentences([d.why, *(prices.alternative_text(report, a) for a in d.alternatives if a.milder)]),
    )  # fmt: skip
    return Layer(
        tip=tuple(f for f in facts if f), bits="×" if gone else "f" if d.bits is None or d.bits == 32 else str(d.bits), key=key, bytes_before=share(c.bytes_before, most_bytes) or 0.0, bytes_after=share(c.bytes_measured, most_bytes),
        ms_before=share(c.ms_before, most_ms) or 0.0, ms_after=share(c.ms_measured, most_ms), width=kept, rank="" if d.rank is None else str(d.rank),
    )  # fmt: skip


def _sentences(clauses: list[str]) -> str:
    return " ".join(f"{c[0].upper()}{c[1:]}." for c in clauses if c)


def _kept(before: str, after: str) -> float:
    """Percent of a weight's output channels that stayed, by its first dimension; 100 where the text is no shape."""
    shape = re.compile(r"(\d+)( x \d+)*")
    old, new = shape.fullmatch(before), shape.fullmatch(after)
    return round(min(100.0, 100 * int(new[1]) / int(old[1])), 1) if old and new and int(old[1]) else 100.0
