"""Findings for people: in the terminal's lines, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from slimline.project.gate import Finding, verdict
from slimline.report.markdown import table_lines

ORDER = {"fail": 0, "inconclusive": 1, "pass": 2}


def headline(found: Sequence[Finding]) -> str:
    """``fail: 2 of 14 checks fail, 1 is inconclusive``."""
    failed, unsure = (sum(f.outcome == o for f in found) for o in ("fail", "inconclusive"))
    said = [f"{failed} of {len(found)} checks fail" if failed else "", f"{unsure} of {len(found)} cannot be decided" if unsure else ""]
    return f"{verdict(found)}: {', '.join(s for s in said if s) or f'all {len(found)} checks pass'}"


def marker(project: str) -> str:
    """What tells the comment of this project from others; not shown."""
    return f"<!-- slimline check {project} -->"


def markdown(found: Sequence[Finding], project: str) -> str:
    """A table, what stops the change first, and what passes folded away."""
    stopping = sorted([f for f in found if f.outcome != "pass"], key=lambda f: ORDER[f.outcome])
    passing = [f for f in found if f.outcome == "pass"]
    lines = [marker(project), f"### Slimline {headline(found)}", ""]
    head = ("artefact", "check", "outcome", "")

    def rows(some: Sequence[Finding]) -> list[tuple[str, ...]]:
        return [(f.artefact, f.title, f.outcome, f.sentence) for f in some]

    if stopping:
        lines += [*table_lines(head, rows(stopping)), ""]
    if passing:
        lines += [f"<details><summary>{len(passing)} checks pass</summary>", "", *table_lines(head, rows(passing)), "", "</details>", ""]
    return "\n".join(lines)
