"""Several targets side by side: the table, and its page."""

from __future__ import annotations

from slimline.core.budget import NOISE
from slimline.core.result import Comparison, Report
from slimline.report.markdown import cell, table_lines
from slimline.report.pages import framed
from slimline.report.rows import fidelity_text, lost_text
from slimline.report.sentence import bytes_text, latency_text, listed, ratio_text

HEAD = ("target", "verdict", "file", "against float32", "plain int8", "latency", "against float32", "plain int8", "quality", "lost", "like the original")


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each target under ``HEAD``; what stopped has its error in the sentences, not here."""
    return [_row(r) for r in found.runs]


def _row(report: Report) -> tuple[str, ...]:
    base, result, plain = report.baseline, report.compressed, report.references.get("plain int8")
    if result is None:
        return (report.target, report.verdict, *[""] * (len(HEAD) - 2))
    return (
        report.target,
        report.verdict,
        bytes_text(result.size_bytes),
        ratio_text(base.size_bytes, result.size_bytes, "smaller", "larger"),
        "" if plain is None else bytes_text(plain.size_bytes),
        latency_text(result.latency_ms.median, result.latency_ms.estimated),
        ratio_text(base.latency_ms.median, result.latency_ms.median, "faster", "slower", NOISE),
        "" if plain is None else latency_text(plain.latency_ms.median, plain.latency_ms.estimated),
        "" if result.quality is None else f"{result.quality:.4f}",
        "" if result.quality is None or base.quality is None else lost_text(base.quality - result.quality, base.quality),
        fidelity_text(report.fidelity),
    )


def markdown(found: Comparison) -> str:
    """One table, then a sentence for each target."""
    lines = [f"# {cell(_title(found))}", "", *table_lines(HEAD, table(found)), ""]
    lines += [f"- [{cell(r.target)}]({r.target}/report.md): {cell(r.sentence)}" for r in found.runs]
    lines += [f"- {cell(s.target)}: stopped. {cell(s.error)}" for s in found.stopped]
    return "\n".join(lines) + "\n"


def html(found: Comparison) -> str:
    """The same as one page without any outside reference."""
    return framed("comparison.html.j2", title=_title(found), head=HEAD, rows=table(found), runs=found.runs, stopped=found.stopped)


def _title(found: Comparison) -> str:
    return f"{found.runs[0].model if found.runs else 'Nothing delivered'}, for {listed([*(r.target for r in found.runs), *(s.target for s in found.stopped)])}"
