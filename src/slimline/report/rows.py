"""The tables and sentences that every rendering shares, as plain text."""

from __future__ import annotations

from collections.abc import Callable

from slimline.core.budget import NOISE, Budget
from slimline.core.result import DecisionRecord, Report
from slimline.core.trial import Agreement, Measurement
from slimline.report.sentence import (
    MINIMISED,
    amount_text,
    bytes_text,
    count_text,
    difference_text,
    estimate_text,
    in_points,
    is_gain,
    least_text,
    most_text,
    only_text,
    percent_text,
    ratio_text,
    time_text,
)

SOURCES = {
    "user": "your own holdout samples",
    "from_search": "one half of your search samples, which nothing was chosen by",
    "from_train": "samples of the training data, which the original has seen (so this can never be a pass)",
}


def summary(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of before and after; plain int8 stands between where it was measured."""
    base, result = report.baseline, report.compressed
    columns: list[tuple[str, Measurement]] = [("original", base)]
    plain = report.references.get("plain int8")
    if plain is not None:
        columns.append(("plain int8", plain))
    if result is not None:
        columns.append(("Slimline", result))
    head = ("", *(name for name, _ in columns), *(("against the original",) if result is not None else ()))

    def row(
        name: str, value: Callable[[Measurement], float | None], text: Callable[[float], str], better: str, worse: str, same: float = 0.005
    ) -> tuple[str, ...]:
        cells = ["" if (v := value(m)) is None else text(v) for _, m in columns]
        if result is not None:
            before, after = value(base), value(result)
            cells.append("" if before is None or after is None else ratio_text(before, after, better, worse, same))
        return (name, *cells)

    rows = [
        row("file", lambda m: m.size_bytes, bytes_text, "smaller", "larger"),
        row("download", lambda m: m.download_bytes, bytes_text, "smaller", "larger"),
        row("memory", lambda m: m.memory_bytes, bytes_text, "smaller", "larger"),
        row(estimate_text("latency", base.latency_ms.estimated), lambda m: m.latency_ms.median, time_text, "faster", "slower", NOISE),
        row("multiply-adds", lambda m: m.macs, count_text, "fewer", "more"),
        row("parameters", lambda m: m.parameters, lambda v: f"{v:,.0f}", "fewer", "more"),
    ]
    if base.quality is not None:
        quality = [f"quality ({report.metric})", *("" if m.quality is None else f"{m.quality:.4f}" for _, m in columns)]
        if result is not None:
            quality.append("" if result.quality is None else lost_text(base.quality - result.quality, base.quality))
        rows.append(tuple(quality))
    return head, rows


def timing_words(report: Report) -> str:
    """Where the latencies come from: how they were measured, or that nothing was."""
    timed, result = report.baseline.latency_ms, report.compressed
    if timed.estimated:
        return f"Latencies are estimates for {report.device}, from its latency table: nothing ran on it."
    both = "" if result is None else f"; 95th percentiles {time_text(timed.p95)} and {time_text(result.latency_ms.p95)}"
    return f"Medians of {timed.runs:,} interleaved runs in one process{both}."


def lost_text(drop: float, quality: float | None) -> str:
    """``0.62 points lost``, ``0.31 points gained``; in metric units where there are no points."""
    return f"{difference_text(abs(drop), quality)} {'gained' if is_gain(drop, quality) else 'lost'}"


def fidelity_text(fidelity: Agreement | None) -> str:
    """Share of equal top-1 where there are classes, else the cosine."""
    if fidelity is None:
        return ""
    return f"{fidelity.top1:.4f}" if fidelity.top1 is not None else f"cosine {fidelity.cosine:.4f}"


def counts_download(report: Report) -> bool:
    """Whether the download is minimised or limited, so that it is shown beside the file."""
    return "download" in Budget.model_validate(report.budget).asked


def references(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the references, the result last."""
    coded = counts_download(report)
    head = (
        "",
        "file",
        *(("download",) if coded else ()),
        estimate_text("latency", report.baseline.latency_ms.estimated),
        "quality",
        "fidelity",
        "recovery steps",
        "note",
    )

    def row(name: str, m: Measurement, fidelity: Agreement | None, steps: str, note: str) -> tuple[str, ...]:
        return (
            name,
            bytes_text(m.size_bytes),
            *((bytes_text(m.download_bytes),) if coded else ()),
            time_text(m.latency_ms.median),
            "" if m.quality is None else f"{m.quality:.4f}",
            fidelity_text(fidelity),
            steps,
            note,
        )

    rows = [row(name, r, r.fidelity, f"{r.recovery_steps:,}", r.note) for name, r in report.references.items()]
    if report.compressed is not None:
        rows.append(row("this result", report.compressed, report.fidelity, "", ""))
    return head, rows


def decisions(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of every site: what it was, what it is, what that cost, and why. Columns without any entry are left out."""
    head = ("site", "decision", "before", "after", "bits", "width", "rank", "bytes", estimate_text("ms", report.baseline.latency_ms.estimated), "loss", "why")
    rows = [
        (
            d.site, d.label or method_text(d), d.before, d.after, bits_text(d), "" if d.width is None else f"{d.width[1]} of {d.width[0]}", "" if d.rank is None else str(d.rank),
            from_to(d.cost.bytes_before, d.cost.bytes_measured, lambda v: f"{v:,.0f}"), from_to(d.cost.ms_before, d.cost.ms_measured, lambda v: f"{v:.4f}"),
            "" if d.cost.loss_predicted is None else f"{d.cost.loss_predicted:.2g}", d.why,
        )
        for d in report.decisions
    ]  # fmt: skip
    kept = [i for i, name in enumerate(head) if name in ("site", "decision", "why") or any(row[i] for row in rows)]
    return tuple(head[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def method_text(decision: DecisionRecord) -> str:
    """The method with its options: ``static_int8 (bits=4, range=mse)``."""
    options = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in decision.options.items())
    return decision.method + (f" ({options})" if options else "")


def bits_text(decision: DecisionRecord) -> str:
    """``8``, or ``32 float``."""
    return "" if decision.bits is None else "32 float" if decision.bits == 32 else str(decision.bits)


def from_to(before: float | None, after: float | None, text: Callable[[float], str]) -> str:
    """``9,216 -> 2,304``; what was not measured says so."""
    if before is None and after is None:
        return ""
    return " -> ".join("not measured" if v is None else text(v) for v in (before, after))


def certificate_words(report: Report) -> str:
    """The certificate for someone who has not read the statistics."""
    drop, certificate = report.drop, report.certificate
    if drop is None or certificate is None:
        return "No certificate: " + ("the run was interrupted." if report.interrupted else "there was no data to test on.")
    quality = report.baseline.quality
    unit = "" if in_points(quality) else " in metric units"
    outcome = f"{'gained' if is_gain(drop.observed, quality) else 'lost'} {difference_text(abs(drop.observed), quality)}{unit}"
    steps, passed = len(certificate.sequence), sum(s.passed for s in certificate.sequence)
    before = certificate.openings - 1
    risk = "5 %" if not before else f"{5 * (before + 1)} %, since a part of the run before had opened them for other finalists, which could not be made again"
    sequence = (
        f"One finalist was fixed before these samples were opened; it {'passed' if passed else 'failed'}. The chance of a false pass is at most {risk}."
        if steps == 1
        else f"{steps} finalists were fixed in order before these samples were opened and tested until the first failure; {passed} passed. Tested this way, the chance of any false pass is at most {risk}."
    )
    return (
        f"The original and the delivered file answered the same {drop.samples:,} samples ({SOURCES[certificate.source]}). The file {outcome}; in truth, with 95 % confidence, "
        f"{most_text(drop.upper_95, quality)}, and with 95 % confidence {least_text(drop.lower_95, quality)}; {amount_text(drop.allowed, quality)} are allowed. Test: {certificate.test}. "
        + (sequence if steps else "")
    ).strip()


def elsewhere(report: Report) -> tuple[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """What a plan for some classes costs on the others: words, and head and rows of the classes that lost most. Empty for all classes."""
    seen, quality = report.elsewhere, report.baseline.quality
    head = ("class", "samples", "lost")
    if seen is None:
        return "", (head, [])
    text = only_text(seen, quality)
    if seen.before is not None and seen.after is not None:
        text += f" Quality there: {seen.before:.4f} before, {seen.after:.4f} after. Quality, drop and certificate above are of the plan's own {'samples' if seen.weighted else 'classes'}."
    return text, (head, [(str(c.label), f"{c.samples:,}", difference_text(c.drop, quality)) for c in seen.worst])


def next_steps(report: Report) -> list[str]:
    """What to do about a verdict that is not ``pass``."""
    if report.interrupted:
        return ["run the same command with --resume to go on"]
    if report.verdict == "inconclusive" and report.drop is not None and report.drop.needed_samples:
        return [f"give {report.drop.needed_samples:,} holdout samples, or allow a larger --max-drop"]
    if report.verdict == "inconclusive" and report.drop is None:
        return ["define data(split) in the task file, so that quality can be measured"]
    if report.verdict == "fail":
        return ["allow more drop, loosen the budget, or give more --time"]
    return _left_as_it_was(report) or _plain_is_better(report)


def _left_as_it_was(report: Report) -> list[str]:
    """Said where the original itself is delivered: no candidate was better."""
    if not report.decisions or report.cheaper or any(d.method != "keep" for d in report.decisions):
        return []
    instead = "" if report.minimize == "size" else ": --minimize size looks for small files"
    return [f"nothing that was tried was better than the original in what was minimised ({MINIMISED[report.minimize]}), so it is delivered as it is{instead}"]


def _plain_is_better(report: Report) -> list[str]:
    """Said where plain int8 keeps the allowance and is better in what was minimised, or has the smaller file where something else was."""
    plain, result, minimised = report.references.get("plain int8"), report.compressed, report.minimize
    if plain is None or result is None:
        return []
    if report.drop is not None and (plain.quality is None or report.baseline.quality is None or report.baseline.quality - plain.quality > report.drop.allowed):
        return []
    if plain.cost(minimised) < result.cost(minimised) * (1 - NOISE if minimised == "latency" else 1):
        text = {"latency": time_text, "macs": count_text}.get(minimised, bytes_text)
        return [f"plain int8 is better in what was minimised ({MINIMISED[minimised]}: {text(plain.cost(minimised))}): give more --time"]
    if minimised == "size" or plain.size_bytes >= result.size_bytes:
        return []
    return [f"plain int8 has the smaller file ({bytes_text(plain.size_bytes)}); {MINIMISED[minimised]} was minimised: --minimize size looks for small files"]


def download_words(report: Report) -> str:
    """What the download is coded by, and how near to the entropy under the codec's own model."""
    measured = report.baseline if report.compressed is None else report.compressed
    above = measured.download_above_entropy
    return f"The download is coded by {measured.download_codec}" + ("." if above is None else f", {percent_text(above)} above the entropy of its model.")
