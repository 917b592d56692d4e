"""What a notebook shows: a report in its output cell, and the progress of a running job."""

from __future__ import annotations

import html
import time
from typing import Any

from rich.console import Console

from slimline.core.progress import Best
from slimline.core.result import Report
from slimline.report import html as page
from slimline.report import rows
from slimline.report.terminal import best_text, left_text

HEIGHT = 720  # pixels of the whole report's frame
PAUSE = 0.25  # seconds between two drawings
TONES = {"pass": "#14713d", "fail": "#b3261e", "inconclusive": "#8a5a00"}


def render(report: Report) -> str:
    """Verdict and table as plain HTML, and the whole report folded in a frame of its own.

    The frame keeps the page's style and script from the notebook's. A viewer that strips frames (an untrusted notebook, a code host)
    still shows the verdict and the table.

    Example:
        >>> callable(render)
        True
    """
    head, body = rows.summary(report)
    said = [*report.obstacles, *(f"next: {n}" for n in rows.next_steps(report))]
    table = "".join(
        ["<table><thead><tr>", *(f"<th>{html.escape(h)}</th>" for h in head), "</tr></thead><tbody>"]
        + [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in body]
        + ["</tbody></table>"]
    )
    return (
        f'<div><p><strong style="color:{TONES[report.verdict]}">{html.escape(report.sentence)}</strong></p>{table}'
        + "".join(f"<p>{html.escape(s)}</p>" for s in said if s not in report.sentence)
        + f'<details><summary>The whole report</summary><iframe title="Slimline report" sandbox="allow-scripts" width="100%" height="{HEIGHT}" '
        f'style="border:0" srcdoc="{html.escape(page.render(report))}"></iframe></details></div>'
    )


def in_notebook() -> bool:
    """Whether this runs in a kernel that shows rich output."""
    return Console().is_jupyter


class NotebookProgress:
    """A line that is redrawn in the output cell, without widgets: what is being done, how far, how long still, the best so far, and the notes below.

    Example:
        >>> NotebookProgress(lambda drawing: None).stage("recovering", 0.4, 192.0)
    """

    def __init__(self, draw: Any = None) -> None:
        self._draw = draw if draw is not None else _cell()
        self._stage, self._fraction, self._left, self._best = "starting", 0.0, 0.0, ""
        self._lines: list[str] = []
        self._drawn = 0.0

    def found(self, lines: tuple[str, ...]) -> None:
        self._lines += lines
        self._show(True)

    def stage(self, name: str, fraction: float, seconds_left: float) -> None:
        new = name != self._stage
        self._stage, self._fraction, self._left = name, max(self._fraction, fraction), seconds_left
        self._show(new or fraction >= 1.0)

    def best(self, best: Best) -> None:
        self._best = best_text(best)
        self._show(True)

    def note(self, text: str) -> None:
        self._lines.append(f"note: {text}")
        self._show(True)

    def _show(self, now: bool) -> None:
        if now or time.monotonic() - self._drawn >= PAUSE:
            self._drawn = time.monotonic()
            self._draw(Drawing(self._html(), self._text()))

    def _text(self) -> str:
        return f"{self._fraction:4.0%} {self._stage}, {left_text(self._left)}{'; ' + self._best if self._best else ''}"

    def _html(self) -> str:
        best = f"<br>{html.escape(self._best)}" if self._best else ""
        lines = "".join(f"<br><small>{html.escape(line)}</small>" for line in self._lines)
        return f'<div><progress max="1" value="{self._fraction:.3f}"></progress> {self._fraction:.0%} <b>{html.escape(self._stage)}</b>, {left_text(self._left)}{best}{lines}</div>'


class Drawing:
    """One drawing, for viewers of either kind."""

    def __init__(self, rich: str, plain: str) -> None:
        self.rich = rich
        self.plain = plain

    def _repr_html_(self) -> str:
        return self.rich

    def __repr__(self) -> str:
        return self.plain


def _cell() -> Any:
    """Draws into a place of the output cell that is drawn over."""
    from IPython.display import display

    handle: list[Any] = []

    def draw(drawing: Drawing) -> None:
        if handle:
            handle[0].update(drawing)
        else:
            handle.append(display(drawing, display_id=True))

    return draw
