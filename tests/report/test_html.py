from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
from PIL import Image

from slimline.core.result import UNPRICED, ArchiveStage, Predictions, Refused, Report
from slimline.report import html
from slimline.report.closeup import png
from slimline.report.html import _pareto, render

VOID = {"meta", "link", "img", "br", "hr", "input", "line", "path", "rect", "circle"}


class Page(HTMLParser):
    """Elements with their attributes, all text outside style and script, and what was closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attributes}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def having(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())]

    def marks(self, kind: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == "g" and kind in a.get("class", "").split()]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_every_report_renders_as_balanced_markup_without_any_outside_reference(any_report: Report) -> None:
    page = html.render(any_report)
    parsed = Page(page)
    assert parsed.wrong == [] and parsed.open == []
    assert len(page.encode()) < 2_000_000
    assert not parsed.having("link") and not parsed.having("img") and not parsed.having("iframe")
    assert not [a for _, a in parsed.elements if a.keys() & {"src", "srcset"} or not a.get("href", "#").startswith("#")]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|http://|https://", page)


def test_hostile_strings_stay_text(reports: dict[str, Report], hostile_text: str) -> None:
    page = html.render(reports["hostile"])
    parsed = Page(page)
    assert "<img" not in page and page.count("</script>") == 1
    assert not [a for _, a in parsed.elements if any(k.startswith("on") for k in a)]
    assert "onerror=\"alert('1')\"" in parsed.text  # the words themselves are shown
    assert any(hostile_text in a.get("data-tip", "") for _, a in parsed.elements)


def test_the_content_policy_allows_the_pages_own_script_alone(report: Report) -> None:
    page = html.render(report)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = Page(page).having("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_verdict_sentence_and_ratios_both_ways_are_there(report: Report) -> None:
    page = Page(html.render(report))
    assert page.having("meta", name="description")[0]["content"] == report.sentence
    assert report.sentence in page.text and "(18\u00a0%" in "".join(page.words), "no break between a number and its unit"
    assert "5.4x smaller (18 % of the original)" in page.text


def test_each_point_reference_and_the_original_is_a_focusable_named_mark_in_each_view(report: Report) -> None:
    page = Page(html.render(report))
    assert [b["data-view"] for b in page.having("button") if "data-view" in b] == ["latency", "size", "both"]
    for kind, count in (("chosen", 1), ("reference", 3), ("original", 1)):
        assert len(page.marks(kind)) == 3 * count
    fronts = sum(p.on_front and not p.chosen for p in report.pareto)
    assert len(page.marks("front")) == 3 * fronts + len(report.predictions.candidates)
    assert all(m["tabindex"] == "0" and m["role"] == "button" and m["aria-label"] for m in page.marks("mark"))
    assert any("plain int8" in m["aria-label"] and "373 KB" in m["aria-label"] for m in page.marks("reference"))


def test_the_view_of_what_is_minimised_comes_first(make_report: Callable[..., Report]) -> None:
    page = Page(html.render(make_report(minimize="size")))
    assert next(b["aria-pressed"] for b in page.having("button", **{"data-view": "size"})) == "true"


def test_where_downloads_count_they_are_drawn_with_what_training_for_them_came_to(make_report: Callable[..., Report], report: Report) -> None:
    points = tuple(p.model_copy(update={"download_bytes": p.size_bytes // 2}) for p in report.pareto)
    kept = ArchiveStage(plan=points[0].plan, price=1.0, download_bytes=9_000, drop=0.002, kept=True)  # was finished, and so is among the points
    lost = ArchiveStage(plan="other", price=2.0, download_bytes=7_000, drop=0.012, kept=False)
    asked = {**report.budget, "minimize": "download"}
    page = Page(html.render(make_report(minimize="download", budget=asked, pareto=points, archive_stages=(kept, lost))))
    assert [b["data-view"] for b in page.having("button") if "data-view" in b] == ["download", "size", "latency", "both"]
    stages = [m["data-tip"] for m in page.marks("trial") if "Stage" in m["data-tip"]]
    assert len(stages) == 1 and "Stage 2" in stages[0] and "7 KB to download" in stages[0] and "1.20 points lost" in stages[0]
    assert any("KB to download" in m["data-tip"] for m in page.marks("reference")) and "each of the 2 stages" in page.text
    assert "to download" not in html.render(report)


def test_a_ruined_trial_is_drawn_at_the_edge_and_said(report: Report) -> None:
    page = Page(html.render(report))
    assert len(page.marks("beyond")) == 2  # in both views that have a drop
    assert "1 point lies outside" in page.text


def test_a_ruined_trial_does_not_squash_the_others_in_the_other_direction_either(make_report: Callable[..., Report], report: Report) -> None:
    tiny = report.pareto[0].model_copy(update={"plan": "tiny", "size_bytes": 900, "latency_ms": 0.001})
    assert tiny.drop == 0.61

    def places(of: Report, view: str) -> dict[str, float]:
        plot = next(p for p in _pareto(of) if p.key == view)
        return {m.tip[-1]: m.x for m in plot.marks}

    ruined = make_report(pareto=(*report.pareto, tiny))
    for view in ("size", "latency"):
        before, after = places(report, view), places(ruined, view)
        assert after.pop("plan tiny") == 0.0 and after == before
    assert places(ruined, "both") != places(report, "both")  # where nothing is told of quality, all are shown


def test_the_chosen_mark_stands_where_the_table_has_the_result(make_report: Callable[..., Report], report: Report) -> None:
    """Beside the references, which were timed with it: as a trial it may have met the machine at a better moment."""
    assert report.compressed is not None and report.compressed.latency_ms.median == 0.262
    early = tuple(p.model_copy(update={"latency_ms": 0.2, "drop": -0.001}) if p.chosen else p for p in report.pareto)
    marks = Page(html.render(make_report(pareto=early))).marks("chosen")
    assert all("0.262 ms" in m["data-tip"] and "0.38 points lost on the holdout" in m["data-tip"] for m in marks) and marks


def test_a_point_measured_twice_with_the_same_result_is_shown_once(make_report: Callable[..., Report], report: Report) -> None:
    doubled = make_report(pareto=(*report.pareto, report.pareto[0]))
    assert len(Page(html.render(doubled)).marks("mark")) == len(Page(html.render(report)).marks("mark"))


def test_every_weight_has_a_column_and_every_decision_its_reason(report: Report) -> None:
    page = Page(html.render(report))
    weights = [d for d in report.decisions if d.op not in ("block", "channels")]
    cells = [b for b in page.having("button") if b.get("class", "").startswith("cell")]
    assert len(cells) == len(weights) == 22
    assert all(d.site in c["data-tip"] and d.why[1:] in c["data-tip"] for d, c in zip(weights, cells, strict=True))
    assert all(("Milder: static_int8 would bring back 0.004 nats" in c["data-tip"]) == bool(d.alternatives) for d, c in zip(weights, cells, strict=True))
    assert all(d.why in page.text for d in report.decisions)
    assert any("rank 8" in c["aria-label"] for c in cells)


def test_a_decision_is_named_as_its_contenders_are(make_report: Callable[..., Report], report: Report) -> None:
    named = tuple(d.model_copy(update={"label": "static_int8(bits=4)"}) for d in report.decisions)
    page = Page(html.render(make_report(decisions=named)))
    assert page.text.count("static_int8(bits=4)") >= len(named) and "weight_range=mse" not in page.text
    assert any("stem.weight: static_int8(bits=4)" in b.get("data-tip", "") for b in page.having("button"))


def test_what_was_not_measured_has_no_bar(make_report: Callable[..., Report], report: Report) -> None:
    unmeasured = tuple(d.model_copy(update={"cost": d.cost.model_copy(update={"bytes_measured": None, "ms_measured": None})}) for d in report.decisions)
    page = Page(html.render(make_report(decisions=unmeasured)))
    assert not page.having("i", class_="fill")
    assert any("not measured bytes" in b.get("data-tip", "") for b in page.having("button"))


def test_without_data_the_plot_shows_size_against_latency_alone(reports: dict[str, Report]) -> None:
    page = Page(html.render(reports["no data"]))
    assert [b["data-view"] for b in page.having("button") if "data-view" in b] == ["both"]
    assert "No certificate: there was no data to test on." in page.text and "quality and drop: there was no data" in page.text


def test_an_interrupted_run_says_how_to_go_on(reports: dict[str, Report]) -> None:
    text = Page(html.render(reports["cut off"])).text
    assert "inconclusive, interrupted" in text and "--resume" in text and "nothing was delivered" in text


def test_a_failure_says_what_stood_in_the_way(reports: dict[str, Report]) -> None:
    assert "In the way: latency is 0.262 ms, the limit 0.2 ms" in Page(html.render(reports["failed"])).text


def test_predictions_have_their_correlation_and_a_warning_when_it_is_low(make_report: Callable[..., Report], report: Report) -> None:
    assert "Rank correlation 0.946 over 22 candidates." in Page(html.render(report)).text
    low = report.predictions.model_copy(update={"rank_correlation": 0.31})
    assert "the estimates chose badly" in Page(html.render(make_report(predictions=low))).text
    assert "nothing to compare" in Page(html.render(make_report(predictions=Predictions()))).text


def test_losses_of_zero_stand_at_the_edge_of_the_logarithmic_plot(make_report: Callable[..., Report], report: Report) -> None:
    first, *rest = report.predictions.candidates
    zero = Predictions(candidates=(first.model_copy(update={"predicted": 0.0}), *rest), rank_correlation=0.9)
    assert "1 with no loss at all" in Page(html.render(make_report(predictions=zero))).text


def test_places_left_alone_are_gathered_by_reason(make_report: Callable[..., Report]) -> None:
    refused = tuple(Refused(where=f"layer.{i}", reason="one reason") for i in range(40))
    page = Page(html.render(make_report(refused=refused)))
    assert page.text.count("one reason") == 1 and "40 places" in page.text and "layer.39" in page.text


def test_metrics_outside_the_unit_interval_are_never_called_points(make_report: Callable[..., Report], report: Report) -> None:
    assert report.compressed is not None and report.drop is not None
    outside: dict[str, Any] = {
        "metric": "neg_mse", "baseline": report.baseline.model_copy(update={"quality": -31.0}), "compressed": report.compressed.model_copy(update={"quality": -31.4}),
        "drop": report.drop.model_copy(update={"observed": 0.4, "lower_95": 0.2, "upper_95": 0.6, "allowed": 1.0}), "references": {}, "pareto": (), "close_up": None,
    }  # fmt: skip
    text = Page(html.render(make_report(**outside))).text
    assert "the drop is at most 0.6 with 95 % confidence" in text and " points" not in text


def test_structure_for_a_screen_reader(report: Report) -> None:
    page = Page(html.render(report))
    assert len(page.having("h1")) == 1 and len(page.having("main")) == 1 and page.having("html", lang="en")
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {a["aria-labelledby"] for a in page.having("section")} <= set(identifiers)
    assert {a["href"][1:] for a in page.having("a")} <= set(identifiers)
    tables = page.having("table")
    assert len(page.having("caption")) == len(tables) > 3
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.having("th"))
    outer = [a for t, a in page.elements if t == "svg" and "x" not in a]
    assert all("aria-label" in a or a.get("aria-hidden") == "true" for a in outer)


def test_what_binds_and_what_more_would_buy_stand_in_a_table(report: Report) -> None:
    text = Page(html.render(report)).text
    assert "What binds: the allowed drop (4 measured candidates were better in all else; more was lost by them, or might have been). Not reached: file." in text
    assert "0.021 nats less loss; in proportion, 0.34 points" in text and "0.006 ms less latency, 4.1 KB less file" in text
    assert text.count("worth 0.009 nats here; it costs more than it brings") == sum(bool(d.alternatives) for d in report.decisions)


def test_a_report_without_prices_says_why_in_their_place(make_report: Callable[..., Report]) -> None:
    page = Page(html.render(make_report(prices=(), not_checked=(f"{UNPRICED}a given plan was carried out",))))
    assert "There are no prices: a given plan was carried out." in page.text and page.having("a", href="#prices") and not page.having("table", class_="prices")
    assert not Page(html.render(make_report(prices=()))).having("a", href="#prices")


def test_samples_classes_slices_certainty_and_disturbances_are_shown(report: Report, reports: dict[str, Report]) -> None:
    assert report.close_up is not None
    text = Page(html.render(report)).text
    assert f"gets {len(report.close_up.lost)} wrong that the original gets right" in text and "By index: 3, 29, 55," in text
    assert "light: night" in text and "Of 10 classes." in text and "Expected calibration error 0.0310 before, 0.0470 after" in text
    assert "0.60 points more lost than without" in text
    assert "Up close" not in Page(html.render(reports["no data"])).text


def test_images_are_in_the_page_only_when_they_were_asked_for(report: Report) -> None:
    pixels = np.linspace(0, 1, 3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    page = html.render(report, {29: png(pixels)})
    (image,) = Page(page).having("img")
    assert image["alt"] == "Sample 29" and "img-src data:" in page and "img-src" not in html.render(report)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))))
    assert drawn.shape == (4, 5, 3) and np.array_equal(drawn, np.round(255 * pixels).astype(np.uint8).transpose(1, 2, 0))
    gray = np.asarray(Image.open(io.BytesIO(png(pixels[:1]))))
    assert gray.shape == (4, 5) and gray.min() == 0 and gray.max() == 255


def test_the_first_figure_is_of_what_was_minimised(make_report: Callable[..., Report]) -> None:
    asked = make_report().budget
    for minimize, name in (("latency", "file"), ("download", "download"), ("macs", "multiply-adds")):
        (first, second, *_) = html._tiles(make_report(budget={**asked, "minimize": minimize}))
        assert (first.name, second.name) == (name, "latency")


def test_where_drops_were_not_believed_the_legend_says_so(report: Report) -> None:
    corners = [(p, (p.size_bytes, p.latency_ms, p.drop or 0.0)) for p in report.pareto]
    front = tuple(
        p.model_copy(update={"on_front": not any(other != own and all(x <= y for x, y in zip(other, own, strict=True)) for _, other in corners)})
        for p, own in corners
    )
    assert "so few samples" not in render(report.model_copy(update={"pareto": front}))
    turned = tuple(p.model_copy(update={"on_front": not p.on_front}) for p in front)
    assert "so few samples" in render(report.model_copy(update={"pareto": turned}))
