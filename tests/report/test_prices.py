"""Prices and contenders in words."""

from __future__ import annotations

from collections.abc import Callable

from slimline.core.result import Alternative, Price, Report
from slimline.report import prices


def test_each_budget_has_a_sentence(report: Report) -> None:
    size, latency, drop = prices.sentences(report)
    assert size == "File: 30 KB more than the limit of 300 KB would buy nothing; the plan takes 214 KB."
    assert latency == "Latency: 0.026 ms more would buy 0.021 nats less loss; in proportion, 0.34 points. At the margin, 0.01 ms are worth 0.014 nats."
    assert drop == "Drop: a tenth more loss (0.011 nats) would buy 0.006 ms less latency, 4.1 KB less file."


def test_a_limit_that_binds_says_both_things_that_more_would_buy(make_report: Callable[..., Report]) -> None:
    bound = Price(
        quantity="size",
        limit=150_000,
        used=149_000,
        step=15_000,
        binds=True,
        worth=2e-6,
        buys={"size": 9_000.0, "latency": -0.011},
        loss_change=-0.01,
        drop_change=None,
    )
    report = make_report(prices=(bound,), cheaper=0)
    assert prices.binding(report) == "What binds: file."
    (said,) = prices.sentences(report)
    assert (
        said
        == "File: 15 KB more would buy 0.011 ms less latency at the same loss, or 0.01 nats less loss at the same latency. At the margin, 10 KB are worth 0.02 nats."
    )
    assert prices.binding(make_report(prices=(bound.model_copy(update={"binds": False}),), cheaper=0)).startswith("No budget binds")


def test_what_hardly_shrinks_what_is_minimised_buys_nothing(make_report: Callable[..., Report]) -> None:
    """Not "0.003 ms more latency", which is what it would cost."""
    drop = Price(quantity="loss", limit=None, used=0.002, step=0.0002, binds=True, buys={"size": -500.0, "latency": 0.003})
    report = make_report(prices=(drop,), minimize="size")
    assert prices.sentences(report) == ["Drop: a tenth more loss (0.0002 nats) would buy nothing."]
    assert "more latency" not in str(prices.table(report))


def test_a_contender_says_what_it_changes_and_why_it_was_not_taken(report: Report) -> None:
    milder = Alternative(label="keep", milder=True, changes={"size": 2_000.0, "latency": 0.01, "loss": -0.002}, worth=0.004, reason="price")
    assert (
        prices.alternative_text(report, milder)
        == "milder: keep would bring back 0.002 nats and cost 2 KB, 0.01 ms, worth 0.004 nats here; it costs more than it brings"
    )
    over = milder.model_copy(update={"reason": "limit", "quantity": "size", "worth": None})
    assert prices.alternative_text(report, over) == "milder: keep would bring back 0.002 nats and cost 2 KB, 0.01 ms; it would break the limit on file"
    stronger = Alternative(label="x", milder=False, changes={"size": -2_000.0, "latency": 0.01, "loss": 0.3}, worth=0.004, reason="price")
    assert (
        prices.alternative_text(report, stronger)
        == "stronger: x would save 2 KB, but cost 0.01 ms, worth 0.004 nats here, and lose 0.3 nats more; it loses more than that is worth"
    )
