from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from slimline.core.progress import Best
from slimline.core.result import Report
from slimline.errors import UsageError
from slimline.report import json as report_json
from slimline.report.finished import read_report
from slimline.report.terminal import LiveProgress, best_text, explain, print_verdict


def console(terminal: bool = False, width: int = 160) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width, force_terminal=terminal, color_system=None), stream


def test_the_verdict_has_its_sentence_its_table_and_the_file_to_open(any_report: Report) -> None:
    to, stream = console()
    print_verdict(any_report, Path("build"), to)
    text = " ".join(stream.getvalue().split())
    assert " ".join(any_report.sentence.split()) in text and str(Path("build") / "report.html") in text and "multiply-adds" in text


def test_names_with_brackets_are_no_markup(report: Report, tmp_path: Path) -> None:
    hostile = report.model_copy(update={"decisions": (report.decisions[0].model_copy(update={"site": "a[bold]b", "why": "[/red]"}),)})
    (tmp_path / "report.json").write_text(report_json.dumps(hostile), encoding="utf-8")
    to, stream = console()
    explain(read_report(tmp_path), to)
    assert "a[bold]b" in stream.getvalue() and "[/red]" in stream.getvalue()


def test_explain_names_every_site_its_reason_and_what_was_left_alone(report: Report) -> None:
    to, stream = console()
    explain(report, to)
    text = " ".join(stream.getvalue().split())
    assert all(d.site in text and d.why in text for d in report.decisions) and report.refused[0].reason in text


def test_without_a_terminal_progress_is_plain_lines_with_the_best_so_far() -> None:
    to, stream = console()
    with LiveProgress(to) as progress:
        progress.stage("recovering", 0.4, 60.0)
        progress.best(Best(label="a plan", size_bytes=214_806, latency_ms=0.262, size_ratio=5.4, latency_ratio=2.8, drop=0.0036))
        progress.stage("certifying", 0.9, 5.0)
    lines = stream.getvalue().splitlines()
    assert lines == [
        " 40% recovering, 60 s left",
        " 90% certifying, 5 s left; best 215 KB (5.4x smaller), 0.262 ms (2.8x faster), drop 0.36 points on search data",
    ]


def test_a_best_that_is_slower_or_gains_or_has_no_points_is_told_so() -> None:
    to, stream = console()
    with LiveProgress(to) as progress:
        progress.best(Best(label="a plan", size_bytes=1_000, latency_ms=0.2, size_ratio=2.0, latency_ratio=0.5, drop=-0.004))
        progress.stage("recovering", 0.4, 192.0)
        progress.best(Best(label="a plan", size_bytes=1_000, latency_ms=0.2, size_ratio=2.0, latency_ratio=0.5, drop=3.1, points=False))
        progress.stage("certifying", 0.3, -2.0)
    assert stream.getvalue().splitlines()[1:] == [
        " 40% recovering, 3:12 left; best 1 KB (2.0x smaller), 0.2 ms (2.0x slower), gain 0.40 points on search data",
        " 40% certifying, past the planned time; best 1 KB (2.0x smaller), 0.2 ms (2.0x slower), drop 3.1 on search data",
    ]


def test_a_best_download_has_the_bytes_of_its_archive_and_no_latency_before_it_was_measured() -> None:
    best = Best(label="a plan", size_bytes=6_710, latency_ms=None, size_ratio=134.0, latency_ratio=1.0, drop=0.0006, download=True)
    assert best_text(best) == "best 6.71 KB to download (134x smaller), drop 0.06 points on search data"


def test_on_a_terminal_the_line_shows_stage_time_left_and_best() -> None:
    to, stream = console(terminal=True)
    with LiveProgress(to) as progress:
        progress.found(("found [2] sites",))
        progress.stage("recovering", 0.4, 192.0)
        progress.best(Best(label="a plan", size_bytes=214_806, latency_ms=0.262, size_ratio=5.4, latency_ratio=2.8, drop=None))
    text = stream.getvalue()
    assert "found [2] sites" in text and "recovering, 3:1" in text and "best 215 KB (5.4x smaller), 0.262 ms (2.8x faster)" in text


def test_the_table_of_the_verdict_fits_eighty_columns(report: Report) -> None:
    to, stream = console(width=80)
    print_verdict(report, Path("build"), to)
    assert "5.4x smaller (18 %)" in stream.getvalue() and "of the original)" not in stream.getvalue().split("against the original")[1]


def test_eighty_columns_hold_each_clause_of_the_verdict_and_each_row_of_its_table(report: Report) -> None:
    to, stream = console(terminal=True, width=80)
    coded = report.compressed.model_copy(update={"download_codec": "slim 1, context mixing", "download_above_entropy": 0.0157}) if report.compressed else None
    print_verdict(report.model_copy(update={"compressed": coded}), Path("build"), to)
    said = [line.strip() for line in stream.getvalue().splitlines()]
    assert "Pass: 5.4x smaller (18 % of the original), 215 KB;" in said and "2.8x faster (35 % of the original), 0.262 ms;" in said
    table = said[
        said.index(next(line for line in said if line.startswith("original"))) + 1 : said.index(next(line for line in said if line.startswith("The report")))
    ]
    assert [line.split()[0] for line in table if line] == ["file", "download", "memory", "latency", "multiply-adds", "parameters", "quality"]
    piped, stream = console(width=80)
    print_verdict(report, Path("build"), piped)
    assert report.sentence in stream.getvalue().splitlines()


def test_an_obstacle_is_told_once(reports: dict[str, Report]) -> None:
    for name in ("failed", "cut off"):
        to, stream = console(width=400)
        print_verdict(reports[name], Path("build"), to)
        assert all(stream.getvalue().count(o) == 1 for o in reports[name].obstacles)


def test_explain_refuses_what_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema": 1}', encoding="utf-8")
    with pytest.raises(UsageError, match="is not a report of this version"):
        read_report(tmp_path)
