"""What a person sees while a job runs, and at its end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slimline.core.progress import Best
from slimline.core.result import Report
from slimline.report import rows
from slimline.report.sentence import bytes_text, time_text

PLAIN_SECONDS = 15.0  # between lines where there is no terminal to redraw
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class LiveProgress:
    """A line that says what is being done, how far, how long still, and the best so far; plain lines where there is no terminal."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self._stage, self._fraction, self._left, self._best = "starting", 0.0, 0.0, ""
        self._at = time.monotonic()
        self._said = ("", 0.0)
        self._live = Live(console=console, get_renderable=self._line, refresh_per_second=4, transient=True) if console.is_terminal and not quiet else None

    def __enter__(self) -> LiveProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def found(self, lines: tuple[str, ...]) -> None:
        if not self.quiet:
            for line in lines:
                self.console.print(escape(line), highlight=False, soft_wrap=True)

    def stage(self, name: str, fraction: float, seconds_left: float) -> None:
        self._stage, self._fraction, self._left, self._at = name, max(self._fraction, fraction), seconds_left, time.monotonic()
        self._plain()

    def best(self, best: Best) -> None:
        drop = "" if best.drop is None else f", drop {100 * best.drop:.2f} points"
        self._best = f"best {bytes_text(best.size_bytes)} ({best.size_ratio:.1f}x smaller), {time_text(best.latency_ms)} ({best.latency_ratio:.1f}x faster){drop}"
        self._plain()

    def note(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[dim]note: {escape(text)}[/dim]", highlight=False, soft_wrap=True)

    def _plain(self) -> None:
        if self._live is not None or self.quiet:
            return
        now = time.monotonic()
        if self._stage != self._said[0] or now - self._said[1] > PLAIN_SECONDS:
            self._said = (self._stage, now)
            self.console.print(f"{self._fraction:4.0%} {escape(self._stage)}, {self._left:.0f} s left{'; ' + self._best if self._best else ''}", highlight=False, soft_wrap=True)

    def _line(self) -> Table:
        left = max(0.0, self._left - (time.monotonic() - self._at))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=1.0, completed=self._fraction, width=24), Text(f"{self._fraction:4.0%}"), Text(f"{self._stage}, {left // 60:.0f}:{left % 60:02.0f} left", style="bold"))
        if self._best:
            grid.add_row("", "", Text(self._best, style="green"))
        return grid


def print_verdict(report: Report, directory: Path, console: Console) -> None:
    """One sentence, one table of before and after, one file to open; and what stood in the way."""
    colour = COLOURS[report.verdict]
    console.print()
    console.print(f"[bold {colour}]{escape(report.sentence)}[/]", highlight=False)
    console.print()
    head, body = rows.summary(report)
    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in body:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print()
    for obstacle in report.obstacles:
        console.print(f"[{colour}]in the way:[/] {escape(obstacle)}", highlight=False)
    for text in rows.next_steps(report):
        console.print(f"next: {escape(text)}", highlight=False)
    console.print(f"The report: {directory / 'report.html'}", highlight=False, soft_wrap=True)
    if report.artefact is not None:
        console.print(f"The model:  {directory / report.artefact.file}", highlight=False, soft_wrap=True)


def explain(directory: Path, console: Console) -> None:
    """Every site of a finished run: what it became, why, and what else was considered."""
    report = Report.model_validate_json((directory / "report.json").read_text(encoding="utf-8"))
    console.print(escape(report.sentence), style="bold", highlight=False)
    for d in report.decisions:
        console.print()
        change = d.after if d.before == d.after else f"{d.before} -> {d.after}"
        bits = f", {d.bits} bits" if d.bits is not None else ""
        console.print(f"[bold]{escape(d.site)}[/] {escape(d.op)}: {escape(d.method)} ({escape(change)}{bits})", highlight=False)
        console.print(f"  {escape(d.why)}", highlight=False)
        if d.considered:
            console.print(f"  [dim]considered: {escape('; '.join(d.considered))}[/]", highlight=False)
    if report.refused:
        console.print("\n[bold]left alone[/]")
        for r in report.refused:
            console.print(f"  {escape(r.where)}: {escape(r.reason)}", highlight=False)
