"""Where nothing ran on the device, every surface that shows a latency calls it an estimate."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slimline.core.progress import Best
from slimline.core.result import Comparison, Report
from slimline.core.trial import Measurement
from slimline.project import difference
from slimline.project.difference import Result
from slimline.report import card, comparison, html, markdown, notebook, prices, runs
from slimline.report.finished import Finished
from slimline.report.terminal import best_text, explain, print_comparison, print_verdict
from slimline.store import mlflow


def estimated(report: Report) -> Report:
    """The same, of a board that its latency table stands for."""

    def told(m: Any) -> Any:
        return m.model_copy(update={"latency_ms": m.latency_ms.model_copy(update={"estimated": True, "runs": 1, "p95": m.latency_ms.median})})

    references = {name: told(r) for name, r in report.references.items()}
    return report.model_copy(
        update={"device": "cortex-m4-256k", "baseline": told(report.baseline), "compressed": told(report.compressed), "references": references}
    )


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.S)).replace("\u00a0", " ").split())


def printed(show: Callable[[Console], None]) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=400, color_system=None))
    return stream.getvalue()


def result(report: Report) -> Result:
    assert report.compressed is not None
    return Result("a", "pass", "top1", report.compressed, None, {})


def best(report: Report) -> Best:
    assert report.compressed is not None
    timed = report.compressed.latency_ms
    return Best("a plan", 1_000, 2.0, timed.median, 2.0, None, estimated=timed.estimated)


def exported(report: Report) -> str:
    timed, here = result(report).measured.latency_ms.model_dump(), result(report).measured.latency_ms.model_copy(update={"estimated": False, "median": 0.5})
    figures = {
        "from": {"target": "litert-micro", "size_bytes": 1, "latency_ms": timed}, "agreement": {"top1": None, "cosine": 1.0}, "latency_ms": here.model_dump(), "layers": {"integer": 1, "float": 0},
        "file": "model.onnx", "target": "onnxruntime", "version": "1", "size_bytes": 1, "samples": 1, "split": "example", "quality": None, "changed": [], "weights": 1,
    }  # fmt: skip
    return str(importlib.import_module("slimline.commands.export")._as_lines(figures, Path("build")))


SURFACES: dict[str, tuple[Callable[[Report], str], tuple[str, ...]]] = {
    "page": (
        lambda r: words(html.render(r)),
        ("latency (estimate) 2.8x faster", "nothing ran on it", "each run as a file", "ms (estimate), 2.8x faster", "decisions file latency (estimate) drop", "before ms (estimate)", "bytes ms (estimate) loss"),
    ),
    "markdown": (markdown.render, ("| latency (estimate) |", "Latencies are estimates for cortex-m4-256k", "| ms (estimate) |")),
    "notebook": (lambda r: words(notebook.render(r)), ("latency (estimate)",)),
    "terminal": (lambda r: printed(lambda c: print_verdict(r, Path("build"), c)), ("latency (estimate)",)),
    "explain": (lambda r: printed(lambda c: explain(r, c)), ("ms (estimate)", "Latency (estimate): 0.026 ms more", "less latency (estimate)")),
    "progress": (lambda r: best_text(best(r)), ("0.262 ms (estimate) (2.0x faster)",)),
    "prices": (lambda r: str(prices.table(r)) + prices.binding(r), ("latency (estimate), minimised", "0.006 ms less latency (estimate)")),
    "targets in a terminal": (lambda r: printed(lambda c: print_comparison(Comparison(runs=(r, r)), Path("build"), c)), ("0.262 ms (estimate)",)),
    "targets in Markdown": (lambda r: comparison.markdown(Comparison(runs=(r, r))), ("| 0.262 ms (estimate) |",)),
    "targets on a page": (lambda r: words(comparison.html(Comparison(runs=(r, r)))), ("0.262 ms (estimate)",)),
    "runs": (lambda r: words(runs.overview("runs", [runs.Run("a", r), runs.Run("b", r)], "", ())), ("0.262 ms (estimate), 2.8x faster",)),
    "two runs": (lambda r: words(runs.side_by_side(runs.Run("a", r), runs.Run("b", r), difference.figures(result(r), result(r)), (), ())), ("a, ms (estimate)", "0.262 ms (estimate)")),
    "difference": (lambda r: str(difference.figures(result(r), result(r))), ("'0.262 ms (estimate)', '0.262 ms (estimate)', 'unchanged'",)),
    "card": (lambda r: card.render(Finished(Path("build"), r, {"files": {}})), ("| latency (estimate) |", "Latencies are estimates for cortex-m4-256k")),
    "mlflow": (lambda r: str(mlflow.metrics(r)), ("'compressed.latency_ms_estimate'", "'ratio.latency_ms_estimate'")),
    "export": (exported, ("0.5 ms median on this machine (0.262 ms (estimate) in litert-micro",)),
}  # fmt: skip


@pytest.mark.parametrize("surface", SURFACES)
def test_a_latency_that_was_not_measured_is_called_an_estimate(surface: str, make_report: Callable[..., Report]) -> None:
    show, expected = SURFACES[surface]
    measured = make_report()
    text = show(estimated(measured))
    assert [e for e in expected if e not in text] == []
    assert "interleaved" not in text and "95th" not in text and "latency_ms_p95" not in text and "'compressed.latency_ms'" not in text
    assert "estimate)" not in show(measured) and "_estimate" not in show(measured) and "nothing ran" not in show(measured)


def test_plots_name_their_axis_an_estimate_and_runs_of_both_kinds_say_so(make_report: Callable[..., Report]) -> None:
    report = make_report()
    assert {p.x.title for p in html._pareto(estimated(report)) if p.key == "latency"} == {"latency (estimate)"}
    both = [runs.Run("a", report), runs.Run("b", estimated(report))]
    assert "latency, some estimates" in {p.x.title for p in runs._plots(both, set())}
    rows = {row[0]: row for row in difference.figures(result(report), result(estimated(report)))}
    assert rows["latency"] == ("latency", "0.262 ms", "0.262 ms (estimate)", "not comparable")


def test_a_measurement_says_how_it_was_made(make_report: Callable[..., Report]) -> None:
    text = words(html.render(make_report()))
    assert "each measured as a file in onnxruntime" in text and "interleaved runs in one process; 95th percentiles" in text
    assert isinstance(make_report().compressed, Measurement)
