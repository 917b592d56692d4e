from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slimline.core.result import Report
from slimline.report import rows


def test_summary_has_plain_int8_between_original_and_result(report: Report) -> None:
    head, body = rows.summary(report)
    assert head == ("", "original", "plain int8", "Slimline", "against the original")
    assert body[0] == ("file", "1.17 MB", "373 KB", "215 KB", "5.4x smaller (18 % of the original)")
    assert body[-1] == ("quality (top1)", "0.8771", "0.8768", "0.8733", "0.38 points lost")


def test_summary_compares_nothing_with_the_original_where_nothing_was_delivered(make_report: Callable[..., Report]) -> None:
    head, body = rows.summary(make_report(compressed=None, drop=None))
    assert head == ("", "original", "plain int8") and all(len(row) == 3 for row in body)


def test_a_gain_of_quality_is_called_a_gain(report: Report) -> None:
    assert rows.lost_text(-0.0067, 0.9) == "0.67 points gained"


def test_a_cost_that_was_not_measured_is_not_told_as_zero(make_report: Callable[..., Report], report: Report) -> None:
    last = report.decisions[-1]
    unmeasured = last.model_copy(update={"cost": last.cost.model_copy(update={"bytes_measured": None, "ms_measured": None})})
    head, body = rows.decisions(make_report(decisions=(unmeasured,)))
    row = dict(zip(head, body[0], strict=True))
    assert row["bytes"] == "2,560 -> not measured" and row["ms"].endswith("-> not measured")


def test_references_tell_their_download_where_it_counts(make_report: Callable[..., Report], report: Report) -> None:
    head, body = rows.references(make_report(budget={**report.budget, "download_bytes": 100_000}))
    assert head[1:3] == ("file", "download") and all(len(row) == len(head) for row in body) and body[0][2].endswith("KB")
    assert "download" not in rows.references(report)[0]


def test_decisions_leave_out_columns_without_any_entry(make_report: Callable[..., Report], report: Report) -> None:
    blocks = tuple(d for d in report.decisions if d.op == "block")
    assert rows.decisions(make_report(decisions=blocks))[0] == ("site", "decision", "before", "after", "loss", "why")
    assert {"width", "rank", "bits"} <= set(rows.decisions(report)[0])


def test_certificate_says_where_its_samples_come_from_and_how_it_was_tested(reports: dict[str, Report]) -> None:
    words = rows.certificate_words(reports["full"])
    assert "5,000 samples (your own holdout samples)" in words and "lost 0.38 points" in words and "3 finalists were fixed" in words
    failed = rows.certificate_words(reports["failed"])
    assert "one half of your search samples" in failed and "One finalist was fixed before these samples were opened; it failed." in failed
    assert rows.certificate_words(reports["cut off"]) == "No certificate: the run was interrupted."


def test_a_holdout_that_was_opened_for_other_finalists_before_is_counted(make_report: Callable[..., Report], report: Report) -> None:
    assert report.certificate is not None and "at most 5 %." in rows.certificate_words(report)
    again = rows.certificate_words(make_report(certificate=report.certificate.model_copy(update={"openings": 2})))
    assert "at most 10 %, since a part of the run before had opened them for other finalists" in again


def test_next_steps_fit_the_verdict(reports: dict[str, Report]) -> None:
    assert rows.next_steps(reports["full"]) == []
    assert "--resume" in rows.next_steps(reports["cut off"])[0]
    assert "data(split)" in rows.next_steps(reports["no data"])[0]
    assert "--time" in rows.next_steps(reports["failed"])[0]


def test_where_the_original_is_delivered_that_is_said(report: Report) -> None:
    kept = report.model_copy(update={"decisions": tuple(d.model_copy(update={"method": "keep"}) for d in report.decisions), "cheaper": 0})
    (said,) = rows.next_steps(kept)
    assert "better than the original in what was minimised (latency)" in said and said.endswith("--minimize size looks for small files")
    (said,) = rows.next_steps(kept.model_copy(update={"minimize": "size"}))
    assert said.endswith("(file size), so it is delivered as it is")
    assert not [n for n in rows.next_steps(kept.model_copy(update={"cheaper": 2})) if "as it is" in n]  # others were better, and lost too much


def test_where_plain_int8_has_the_smaller_file_and_loses_no_more_that_is_said(report: Report) -> None:
    plain, result = report.references["plain int8"], report.compressed
    assert result is not None and report.minimize == "latency" and report.baseline.quality is not None and report.drop is not None
    smaller = plain.model_copy(update={"size_bytes": result.size_bytes // 2, "quality": report.baseline.quality})
    (said,) = rows.next_steps(report.model_copy(update={"references": {"plain int8": smaller}}))
    assert "plain int8 has the smaller file (107 KB)" in said and "latency was minimised: --minimize size" in said
    worse = smaller.model_copy(update={"quality": report.baseline.quality - 1.01 * report.drop.allowed})
    assert rows.next_steps(report.model_copy(update={"references": {"plain int8": worse}})) == []


def test_where_plain_int8_is_better_in_what_was_minimised_that_is_said(report: Report) -> None:
    plain, result = report.references["plain int8"], report.compressed
    assert result is not None and report.minimize == "latency" and report.baseline.quality is not None

    def said(minimised: str, **changes: Any) -> list[str]:
        better = plain.model_copy(update={"quality": report.baseline.quality, **changes})
        return rows.next_steps(report.model_copy(update={"references": {"plain int8": better}, "minimize": minimised}))

    for minimised, changes, words in (
        ("latency", {"latency_ms": result.latency_ms.model_copy(update={"median": 0.9 * result.latency_ms.median})}, "(latency: "),
        ("size", {"size_bytes": result.size_bytes // 2}, "(file size: 107 KB)"),
        ("macs", {"macs": result.macs - 1}, "(multiply-adds: "),
    ):
        (text,) = said(minimised, **changes)
        assert text.startswith("plain int8 is better in what was minimised " + words) and text.endswith("give more --time")
    alike = result.latency_ms.model_copy(update={"median": 0.99 * result.latency_ms.median})  # two rounds of one file differ by as much
    assert said("latency", latency_ms=alike) == []
