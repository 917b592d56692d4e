"""``report.md``: for a pull request or a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slimline.core.result import Report
from slimline.report import closeup, prices, rows


def render(report: Report) -> str:
    """The report as Markdown."""
    head, body = rows.summary(report)
    parts = [
        f"# {cell(report.model)}: {report.verdict}",
        "",
        cell(report.sentence),
        "",
        *table_lines(head, body),
        "",
        cell(f"{rows.timing_words(report)} {rows.download_words(report)}"),
        "",
        "## Certificate",
        "",
        cell(rows.certificate_words(report)),
    ]
    aside, worst = rows.elsewhere(report)
    if aside:
        parts += ["", "## What it costs elsewhere", "", cell(aside), *(["", *table_lines(*worst)] if worst[1] else [])]
    if report.references:
        parts += ["", "## References", "", *table_lines(*rows.references(report))]
    if report.obstacles or rows.next_steps(report):
        parts += [
            "",
            "## What stood in the way, and what to do",
            "",
            *(f"- {cell(o)}" for o in report.obstacles),
            *(f"- next: {cell(n)}" for n in rows.next_steps(report)),
        ]
    if binding := prices.binding(report):
        parts += ["", "## What binds, and what more would buy", "", cell(binding)]
    if report.prices:
        parts += ["", *table_lines(*prices.table(report)), "", prices.NOTE]
    if report.archive_stages:
        parts += ["", *table_lines(*prices.stages(report)), "", prices.STAGES_NOTE]
    parts += ["", "## Decisions", "", *table_lines(*rows.decisions(report))]
    rivals = [f"- {code(d.site)}: {cell(text)}" for d in report.decisions for text in prices.alternatives(report, d)]
    if rivals:
        parts += ["", "### What each site was closest to being instead", "", *rivals]
    if report.refused:
        parts += ["", "## Left alone", "", *(f"- {code(r.where)}: {cell(r.reason)}" for r in report.refused)]
    if report.close_up is not None:
        parts += ["", "## Up close", "", *(f"{'  ' if t.startswith('  ') else ''}- {cell(t.strip())}" for t in closeup.lines(report.close_up, report.metric))]
    p = report.predictions
    if p.rank_correlation is not None:
        parts += [
            "",
            "## Predicted against measured",
            "",
            f"Rank correlation of predicted and measured loss over {len(p.candidates)} candidates: {p.rank_correlation:.3f}.",
        ]
    parts += ["", "## Not checked", "", *(f"- {cell(n)}" for n in report.not_checked or ("nothing is known to be unchecked",))]
    ticks = fence(report.command, 3)
    environment = ", ".join(f"{cell(k)} {cell(v)}" for k, v in report.environment.items())
    parts += ["", "## How to reproduce", "", ticks, report.command, ticks, "", f"Seed {report.seed}; {environment}."]
    if report.artefact is not None:
        parts += ["", f"{code(report.artefact.file)}: sha256 {code(report.artefact.sha256)}"]
    return "\n".join(parts) + "\n"


def table_lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Head and rows as a table."""
    return ["| " + " | ".join(map(cell, head)) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(map(cell, row)) + " |" for row in body)]


def cell(text: str) -> str:
    """One line that is text in a table and outside of it."""
    return text.replace("|", "\\|").replace("`", "\\`").replace("\n", " ").replace("<", "&lt;")


def code(text: str) -> str:
    """A code span around any text."""
    ticks, pad = fence(text, 1), " " if "`" in text else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"


def fence(text: str, least: int) -> str:
    """More backticks than any run of them in the text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])
