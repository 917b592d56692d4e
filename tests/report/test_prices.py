"""Prices and contenders in words."""

from __future__ import annotations

from collections.abc import Callable

from slimline.core.result import UNPRICED, Alternative, ArchiveStage, Price, Report
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
    assert prices.binding(make_report(prices=(bound.model_copy(update={"binds": False}),), cheaper=0)).startswith(
        "No budget binds: nothing that was tried is faster (latency), whatever it loses."
    )


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
        == "milder: keep would bring back 0.002 nats (in proportion, 0.01 points; 0.01 ms here: 0.002 nats) and cost 2 KB, 0.01 ms, worth 0.004 nats here; it costs more than it brings"
    )
    over = milder.model_copy(update={"reason": "limit", "quantity": "size", "worth": None})
    assert (
        prices.alternative_text(report, over)
        == "milder: keep would bring back 0.002 nats (in proportion, 0.01 points; 0.01 ms here: 0.002 nats) and cost 2 KB, 0.01 ms; it would break the limit on file"
    )
    stronger = Alternative(label="x", milder=False, changes={"size": -2_000.0, "latency": 0.01, "loss": 0.3}, worth=0.004, reason="price")
    assert (
        prices.alternative_text(report, stronger)
        == "stronger: x would save 2 KB, but cost 0.01 ms, worth 0.004 nats here, and lose 0.3 nats more (10 KB here: 1.5 nats); it loses more than that is worth"
    )


def test_without_prices_a_contender_is_told_in_nats_and_the_report_says_why(make_report: Callable[..., Report], report: Report) -> None:
    from slimline.core.result import UNPRICED

    milder = Alternative(label="keep", milder=True, changes={"size": 2_000.0, "loss": -0.002}, worth=None, reason="price")
    bare = make_report(prices=(), not_checked=(f"{UNPRICED}a given plan was carried out",))
    assert prices.alternative_text(bare, milder) == "milder: keep would bring back 0.002 nats and cost 2 KB; it costs more than it brings"
    assert prices.binding(bare) == "There are no prices: a given plan was carried out."
    assert prices.binding(make_report(prices=())) == ""


def test_a_share_of_the_drop_is_told_of_losses_within_the_plans_own_only(make_report: Callable[..., Report], report: Report) -> None:
    """More than the plan lost in all would be guessed from the outside."""
    stronger = Alternative(label="x", milder=False, changes={"size": -2_000.0, "loss": 0.1}, worth=None, reason="price")
    assert report.drop is not None
    assert "in proportion, 0.35 points" in prices.alternative_text(report, stronger)
    assert "in proportion" not in prices.alternative_text(report, stronger.model_copy(update={"changes": {"size": -2_000.0, "loss": 0.12}}))
    gained = make_report(drop=report.drop.model_copy(update={"observed": -0.001}))
    assert "in proportion" not in prices.alternative_text(gained, stronger)


def test_a_little_change_is_not_stretched_to_a_whole_unit(report: Report) -> None:
    """A real run had "0.1 ms here: 16 nats" of an option that saves 0.00006 ms."""
    hardly = Alternative(label="x", milder=False, changes={"size": -9_000.0, "latency": -6e-5, "loss": 0.2}, worth=0.001, reason="price")
    assert "lose 0.2 nats more (10 KB here: 0.22 nats);" in prices.alternative_text(report, hardly)
    neither = hardly.model_copy(update={"changes": {"size": -900.0, "latency": -6e-5, "loss": 0.2}})
    assert "lose 0.2 nats more;" in prices.alternative_text(report, neither)


def test_what_costs_less_than_it_saves_is_told_as_a_saving(report: Report) -> None:
    both = Alternative(label="x", milder=True, changes={"size": 2_800.0, "latency": -0.003, "loss": -2e-4}, worth=-0.001, reason="estimate")
    assert "cost 2.8 KB, but save 0.003 ms, in all a saving worth 0.001 nats here;" in prices.alternative_text(report, both)
    dear = both.model_copy(update={"milder": False, "changes": {"size": -3_500.0, "latency": 0.006, "loss": 1e-4}, "reason": "price"})
    assert "save 3.5 KB, but cost 0.006 ms, in all a cost worth 0.001 nats here," in prices.alternative_text(report, dear)


def test_losses_of_values_are_not_called_nats(report: Report) -> None:
    """A sentence encoder's report spoke of nats, of which it has none."""
    values = report.model_copy(update={"losses_in": "relative squared error"})
    said = [
        *prices.sentences(values),
        *(cell for row in prices.table(values)[1] for cell in row),
        *(t for d in values.decisions for t in prices.alternatives(values, d)),
    ]
    assert not [t for t in said if "nats" in t] and sum("relative squared error" in t for t in said) > 3


def test_where_all_weights_were_trained_together_the_stages_stand_for_prices(make_report: Callable[..., Report], report: Report) -> None:
    delivered = next(p.plan for p in report.pareto if p.chosen)
    stages = tuple(
        ArchiveStage(plan=plan, price=price, download_bytes=size, drop=drop, kept=True)
        for plan, price, size, drop in ((delivered, 1.0, 3_100, 0.001), ("x", 2.0, 2_600, 0.004))
    )
    trained = make_report(prices=(), cheaper=1, archive_stages=stages, not_checked=(f"{UNPRICED}all weights were trained together",))
    said = prices.binding(trained)
    assert (
        said
        == "What binds: the allowed drop (1 measured candidate was better in all else; more was lost by it, or might have been). There are no prices: all weights were trained together."
    )
    assert prices.stages(trained)[1] == [("1", "1 nats", "3.1 KB", "0.10 points", "delivered"), ("2", "2 nats", "2.6 KB", "0.40 points", "")]
    assert prices.stages(report)[1] == []
