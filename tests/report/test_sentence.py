from __future__ import annotations

from collections.abc import Callable

import pytest

from slimline.core.result import DropInterval, Report
from slimline.report.sentence import (
    bytes_text,
    change_text,
    count_text,
    difference_text,
    least_text,
    most_text,
    percent_text,
    points,
    ratio_text,
    sentence,
    time_text,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 KB"),
        (11_662, "11.7 KB"),
        (214_806, "215 KB"),
        (999_400, "999 KB"),
        (999_600, "1 MB"),
        (1_165_020, "1.17 MB"),
        (212_000_000, "212 MB"),
        (1.3e9, "1.3 GB"),
        (5e15, "5,000 TB"),
    ],
)
def test_bytes_have_three_digits_and_the_unit_they_are_of(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_counts_and_times_follow_the_same_manner() -> None:
    assert [count_text(v) for v in (48, 2_100, 40_551_424, 3.9e9)] == ["48", "2.1 k", "40.6 M", "3.9 G"]
    assert [time_text(v) for v in (0.0233, 0.343, 12.4, 999.7, 1_200.0)] == ["0.0233 ms", "0.343 ms", "12.4 ms", "1 s", "1.2 s"]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (100.0, 24.4, "4.1x smaller (24 % of the original)"), (100.0, 50.0, "2.0x smaller (50 % of the original)"), (24.0, 100.0, "4.2x larger (417 % of the original)"), (100.0, 0.8, "125x smaller (0.8 % of the original)"),
        (100.0, 100.2, "unchanged"), (100.0, 98.0, "2 % smaller (98 % of the original)"), (100.0, 103.0, "3 % larger (103 % of the original)"), (100.0, 0.0, "not comparable"),
    ],
)  # fmt: skip
def test_ratios_are_told_both_ways(before: float, after: float, text: str) -> None:
    assert ratio_text(before, after, "smaller", "larger") == text


def test_small_shares_keep_two_digits() -> None:
    assert [percent_text(v) for v in (0.0049, 0.052, 0.18, 1.0, 12.0)] == ["0.49 %", "5.2 %", "18 %", "100 %", "1,200 %"]
    assert change_text(1000.0, 1.0, "smaller", "larger") == "1,000x smaller"


def test_points_never_read_minus_zero() -> None:
    assert [points(v) for v in (0.0062, -0.00001, -0.0031)] == ["0.62", "0.00", "-0.31"]


def test_only_a_metric_in_the_unit_interval_has_points() -> None:
    assert difference_text(0.0062, 0.88) == "0.62 points"
    assert difference_text(3.1, -31.0) == "3.1"
    assert difference_text(3.1, None) == "3.1"


def interval(lower: float, observed: float, upper: float, needed: int | None = None) -> DropInterval:
    return DropInterval(observed=observed, lower_95=lower, upper_95=upper, allowed=0.01, samples=250, needed_samples=needed)


def test_a_pass_names_its_upper_limit(report: Report) -> None:
    assert report.sentence == (
        "Pass: 5.4x smaller (18 % of the original), 215 KB; 2.8x faster (35 % of the original), 0.262 ms; the drop is at most 0.74 points with 95 % confidence, 1.00 are allowed."
    )


def test_a_certified_gain_is_told_as_one(report: Report) -> None:
    text = sentence("pass", report.baseline, report.compressed, interval(-0.002, -0.001, -0.0003))
    assert "; it is better than the original by at least 0.03 points with 95 % confidence, a drop of 1.00 is allowed." in text
    assert "the drop is at most 0.00 points" in sentence("pass", report.baseline, report.compressed, interval(-0.002, -0.001, -0.00001))
    text = sentence("inconclusive", report.baseline, report.compressed, interval(-0.03, -0.001, 0.028, 9_000))
    assert "it seems better than the original by 0.10 points, the drop lies between -3.00 and 2.80 on 250 samples" in text


def test_limits_below_zero_are_limits_of_what_was_gained() -> None:
    assert [most_text(v, 0.9) for v in (0.0074, 0.0, -0.0003)] == ["at most 0.74 points lost", "at most 0.00 points lost", "at least 0.03 points gained"]
    assert [least_text(v, 0.9) for v in (0.0074, -0.0003)] == ["at least 0.74 points lost", "at most 0.03 points gained"]
    assert most_text(-2.0, -31.0) == "at least 2 gained"


def test_a_refuted_drop_names_its_lower_limit_and_what_stood_in_the_way(report: Report) -> None:
    text = sentence("fail", report.baseline, report.compressed, interval(0.02, 0.03, 0.04), ("latency is 3, the limit 2",))
    assert "the drop is at least 2.00 points" in text and text.endswith("In the way: latency is 3, the limit 2.")


def test_it_is_said_where_the_original_has_less_of_what_was_to_be_minimised(report: Report) -> None:
    drop = interval(0.0, 0.004, 0.008)
    text = sentence("pass", report.compressed, report.baseline, drop)
    assert text.endswith("What was to be minimised, latency, is less in the original: keep that, or ask for --minimize size.")
    assert sentence("pass", report.compressed, report.baseline, drop, minimize="size").endswith("file, is less in the original: keep that.")
    assert "to be minimised" not in sentence("pass", report.baseline, report.compressed, drop)


def test_a_missed_budget_with_a_certified_drop_says_that_the_drop_is_fine(report: Report) -> None:
    assert "the drop is at most 0.80 points" in sentence("fail", report.baseline, report.compressed, interval(0.0, 0.004, 0.008))


def test_inconclusive_names_both_limits_and_the_samples_needed(report: Report) -> None:
    assert "the drop is 0.40 points, between -0.80 and 1.60 on 250 samples, 1.00 are allowed, it takes 1,900 samples to decide" in sentence(
        "inconclusive", report.baseline, report.compressed, interval(-0.008, 0.004, 0.016, 1_900)
    )


def test_samples_that_the_original_has_seen_give_no_limit_to_rely_on(report: Report) -> None:
    assert "at most" not in sentence("inconclusive", report.baseline, report.compressed, interval(0.0, 0.004, 0.008))


def test_nothing_delivered_says_why(make_report: Callable[..., Report]) -> None:
    report = make_report()
    assert sentence("fail", report.baseline, None, None, ("no plan is that small",)) == "Fail: nothing was delivered; no plan is that small."


def test_a_latency_within_the_noise_is_no_gain(report: Report) -> None:
    assert report.compressed is not None
    before = report.baseline.latency_ms
    near = report.compressed.model_copy(update={"latency_ms": before.model_copy(update={"median": 0.985 * before.median})})
    assert "; as fast as the original, " in sentence(report.verdict, report.baseline, near, report.drop)
    clear = report.compressed.model_copy(update={"latency_ms": before.model_copy(update={"median": 0.97 * before.median})})
    assert "faster (97 % of the original)" in sentence(report.verdict, report.baseline, clear, report.drop)


def test_what_was_minimised_leads_where_it_is_neither_the_file_nor_the_latency(report: Report) -> None:
    small = report.baseline.model_copy(update={"download_bytes": 43_700, "macs": report.baseline.macs // 2})
    base = report.baseline.model_copy(update={"download_bytes": 1_440_000})
    assert sentence("pass", base, small, None, minimize="download").startswith("Pass: download 33x smaller (3 % of the original), 43.7 KB; file unchanged, ")
    assert sentence("pass", base, small, None, minimize="macs").startswith("Pass: multiply-adds 2.0x fewer (50 % of the original), ")
    assert sentence("pass", base, small, None, minimize="size") == sentence("pass", base, small, None)
