"""The tables that every rendering shares, as plain text cells."""

from __future__ import annotations

from slimline.core.result import Report
from slimline.core.trial import Measurement
from slimline.report.sentence import bytes_text, ratio_text, time_text


def summary(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of before and after; plain int8 stands between where it was measured."""
    columns: list[tuple[str, Measurement]] = [("original", report.baseline)]
    plain = report.references.get("plain int8")
    if plain is not None:
        columns.append(("plain int8", plain))
    if report.compressed is not None:
        columns.append(("Slimline", report.compressed))
    head = ("", *(name for name, _ in columns), "against the original")
    last = columns[-1][1]

    def row(name: str, cell, before: float, after: float, better: str, worse: str) -> tuple[str, ...]:  # type: ignore[no-untyped-def]
        return (name, *(cell(m) for _, m in columns), ratio_text(before, after, better, worse))

    base = report.baseline
    rows = [
        row("file", lambda m: bytes_text(m.size_bytes), base.size_bytes, last.size_bytes, "smaller", "larger"),
        row(f"download ({base.download_codec})", lambda m: bytes_text(m.download_bytes), base.download_bytes, last.download_bytes, "smaller", "larger"),
        row("memory", lambda m: bytes_text(m.memory_bytes), base.memory_bytes, last.memory_bytes, "smaller", "larger"),
        row("latency", lambda m: time_text(m.latency_ms.median), base.latency_ms.median, last.latency_ms.median, "faster", "slower"),
        row("multiply-adds", lambda m: f"{m.macs / 1e6:,.2f} M", base.macs, last.macs, "fewer", "more"),
        row("parameters", lambda m: f"{m.parameters:,}", base.parameters, last.parameters, "fewer", "more"),
    ]
    if base.quality is not None:
        drop = f"{100 * (base.quality - (last.quality or 0.0)):+.2f} points lost" if last.quality is not None else ""
        rows.append((f"quality ({report.metric})", *("" if m.quality is None else f"{m.quality:.4f}" for _, m in columns), drop))
    return head, rows


def references(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the references, the result last."""
    head = ("", "file", "latency", "quality", "fidelity", "note")
    rows: list[tuple[str, ...]] = []
    for name, r in report.references.items():
        fidelity = "" if r.fidelity is None else f"{r.fidelity.top1:.4f}" if r.fidelity.top1 is not None else f"cosine {r.fidelity.cosine:.4f}"
        rows.append((name, bytes_text(r.size_bytes), time_text(r.latency_ms.median), "" if r.quality is None else f"{r.quality:.4f}", fidelity, r.note))
    if report.compressed is not None:
        c, f = report.compressed, report.fidelity
        fidelity = "" if f is None else f"{f.top1:.4f}" if f.top1 is not None else f"cosine {f.cosine:.4f}"
        rows.append(("this result", bytes_text(c.size_bytes), time_text(c.latency_ms.median), "" if c.quality is None else f"{c.quality:.4f}", fidelity, ""))
    return head, rows


def decisions(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of every site: what it was, what it is, what that cost, and why."""
    head = ("site", "decision", "before", "after", "bits", "bytes", "ms", "loss", "why")
    rows: list[tuple[str, ...]] = []
    for d in report.decisions:
        options = ", ".join(f"{k}={v}" for k, v in d.options.items())
        cost = d.cost
        size = "" if cost.bytes_before is None else f"{cost.bytes_before:,} -> {cost.bytes_measured or 0:,}"
        ms = "" if cost.ms_before is None else f"{cost.ms_before:.3f} -> {cost.ms_measured or 0.0:.3f}"
        rows.append((d.site, d.method + (f" ({options})" if options else ""), d.before, d.after, "" if d.bits is None else str(d.bits), size, ms, "" if cost.loss_predicted is None else f"{cost.loss_predicted:.2g}", d.why))
    return head, rows


def certificate_words(report: Report) -> str:
    """The certificate for someone who has not read the statistics."""
    drop, certificate = report.drop, report.certificate
    if drop is None or certificate is None:
        return "No certificate: " + ("the run was interrupted." if report.interrupted else "there was no data to test on.")
    source = {"user": "your own holdout samples", "from_search": "one half of your search samples, which nothing was chosen by", "from_train": "samples of the training data, which the original has seen (so this can never be a pass)"}[certificate.source]
    steps = len(certificate.sequence)
    passed = sum(s.passed for s in certificate.sequence)
    return (
        f"The original and the delivered file answered the same {drop.samples:,} samples ({source}). The file lost {100 * drop.observed:.2f} points; with 95 % confidence the true loss lies below "
        f"{100 * drop.upper_95:.2f} (and above {100 * drop.lower_95:.2f}); {100 * drop.allowed:.2f} are allowed. Test: {certificate.test}. "
        f"{steps} finalist{'s were' if steps != 1 else ' was'} fixed in order before these samples were opened and tested until the first failure; {passed} passed, so the chance of any false pass is at most 5 %."
    )
