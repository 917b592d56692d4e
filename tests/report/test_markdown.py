from __future__ import annotations

import re

from slimline.core.result import Report
from slimline.report import markdown


def test_every_part_is_there(report: Report) -> None:
    text = markdown.render(report)
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Certificate",
        "References",
        "What binds, and what more would buy",
        "Decisions",
        "Left alone",
        "Up close",
        "Predicted against measured",
        "Not checked",
        "How to reproduce",
    ]
    assert report.sentence in text and report.command in text and report.artefact is not None and report.artefact.sha256 in text


def test_tables_keep_their_shape_whatever_the_names(any_report: Report) -> None:
    table: list[int] = []
    for line in [*markdown.render(any_report).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line.replace("\\|", "").count("|"))
            continue
        assert len(set(table)) <= 1
        table = []


def test_hostile_names_become_no_markup(reports: dict[str, Report]) -> None:
    text = markdown.render(reports["hostile"])
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text.replace("\\`", ""), flags=re.DOTALL)
    assert "<img" in text and "<" not in outside_code


def test_a_failure_says_what_to_do(reports: dict[str, Report]) -> None:
    text = markdown.render(reports["failed"])
    assert "- latency is 0.262 ms, the limit 0.2 ms" in text and "- next: allow more drop" in text
