"""What a person sees while a job runs, and at its end."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slimline.core.progress import Best
from slimline.core.result import Comparison, DecisionRecord, Report
from slimline.report import closeup, comparison, prices, rows
from slimline.report.sentence import bytes_text, change_text, estimate_text, faster_text, latency_text, points

NARROW = 96  # columns, below which the table of the verdict would wrap in every row
PLAIN_SECONDS = 15.0  # between lines where there is no terminal to redraw
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


class LiveProgress:
    """A line that says what is being done, how far, how long still, and the best so far; plain lines where there is no terminal.

    Example:
        >>> with LiveProgress(Console(width=120)) as progress:
        ...     progress.stage("recovering", 0.4, 192.0)
         40% recovering, 3:12 left
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._stage, self._fraction, self._left, self._best = "starting", 0.0, 0.0, ""
        self._at = time.monotonic()
        self._said = ("", 0.0)
        self._live = (
            Live(console=console, get_renderable=self._line, refresh_per_second=4, transient=True)
            if console.is_terminal and not console.is_jupyter and not console.is_dumb_terminal
            else None
        )

    def __enter__(self) -> LiveProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def found(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            self.console.print(escape(line), highlight=False, soft_wrap=True)

    def stage(self, name: str, fraction: float, seconds_left: float) -> None:
        self._stage, self._fraction, self._left, self._at = name, max(self._fraction, fraction), seconds_left, time.monotonic()
        self._plain()

    def best(self, best: Best) -> None:
        self._best = best_text(best)
        self._plain()

    def note(self, text: str) -> None:
        self.console.print(f"[dim]note: {escape(text)}[/dim]", highlight=False, soft_wrap=True)

    def _plain(self) -> None:
        if self._live is not None:
            return
        now = time.monotonic()
        if self._stage != self._said[0] or now - self._said[1] > PLAIN_SECONDS:
            self._said = (self._stage, now)
            self.console.print(
                f"{self._fraction:4.0%} {escape(self._stage)}, {left_text(self._left)}{'; ' + self._best if self._best else ''}",
                highlight=False,
                soft_wrap=True,
            )

    def _line(self) -> Table:
        left = self._left - (time.monotonic() - self._at)
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=1.0, completed=self._fraction, width=24), Text(f"{self._fraction:4.0%}"), Text(f"{self._stage}, {left_text(left)}", style="bold")
        )
        if self._best:
            grid.add_row("", "", Text(self._best, style="green"))
        return grid


def best_text(best: Best) -> str:
    """``best 215 KB (5.4x smaller), 0.262 ms (2.8x faster), drop 0.36 points on search data``; ``best 6.71 KB to download (134x smaller), ...``."""
    drop = (
        ""
        if best.drop is None
        else f", {'gain' if best.drop < 0 else 'drop'} {f'{points(abs(best.drop))} points' if best.points else f'{abs(best.drop):.3g}'} on search data"
    )
    size = change_text(best.size_ratio * best.size_bytes, best.size_bytes, "smaller", "larger")
    latency = ""
    if best.latency_ms is not None:
        latency = f", {latency_text(best.latency_ms, best.estimated)} ({faster_text(best.latency_ratio * best.latency_ms, best.latency_ms)})"
    return f"best {bytes_text(best.size_bytes)}{' to download' if best.download else ''} ({size}){latency}{drop}"


def left_text(seconds: float) -> str:
    """``9:03 left``, ``42 s left``; past the schedule, that."""
    whole = round(seconds)
    if whole <= 0:
        return "past the planned time"
    return (
        f"{whole} s left"
        if whole < 100
        else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} left"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d} left"
    )


def print_verdict(report: Report, directory: Path, console: Console) -> None:
    """One sentence, one table of before and after, one file to open; and what stood in the way."""
    colour = COLOURS[report.verdict]
    console.print()
    for clause in _clauses(report.sentence, console):
        console.print(f"[bold {colour}]{escape(clause)}[/]", highlight=False, soft_wrap=not console.is_terminal)
    console.print()
    head, body = rows.summary(report)
    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in body:  # the column's head says of what the share is
        table.add_row(*(escape(c.replace(" of the original)", ")") if console.width < NARROW else c) for c in row))
    console.print(table)
    console.print()
    for obstacle in (o for o in report.obstacles if o not in report.sentence):
        console.print(f"[{colour}]in the way:[/] {escape(obstacle)}", highlight=False, soft_wrap=not console.is_terminal)
    for text in rows.next_steps(report):
        console.print(f"next: {escape(text)}", highlight=False, soft_wrap=not console.is_terminal)
    console.print(f"The report: {directory / 'report.html'}", highlight=False, soft_wrap=True)
    if report.artefact is not None:
        console.print(f"The model:  {directory / report.artefact.file}", highlight=False, soft_wrap=True)


def _clauses(sentence: str, console: Console) -> list[str]:
    """A verdict that is too long for a person's line, clause by clause; a program that reads gets one line."""
    if not console.is_terminal or len(sentence) <= console.width:
        return [sentence]
    first, *others = sentence.split("; ")
    return [f"{text};" for text in (first, *others[:-1])] + others[-1:] if others else [first]


def print_comparison(found: Comparison, directory: Path, console: Console) -> None:
    """The targets side by side, and one file to open."""
    table = Table(*comparison.HEAD, box=None, header_style="bold", pad_edge=False)
    for row in comparison.table(found):
        table.add_row(*map(escape, row))
    console.print()
    console.print(table)
    for stopped in found.stopped:
        console.print(f"[red]{escape(stopped.target)} stopped:[/] {escape(stopped.error)}", highlight=False)
    console.print(f"The report: {directory / 'report.html'}", highlight=False, soft_wrap=True)


def explain(report: Report, console: Console) -> None:
    """What binds, every site of a finished run (what it became, what that cost, why, and what else was considered), and what was lost up close."""
    _paragraph(console, report.sentence, "bold", 0)
    if binding := prices.binding(report):
        console.print()
        _paragraph(console, binding, "bold", 0)
    if report.prices:
        for sentence in prices.sentences(report):
            _paragraph(console, sentence)
        _paragraph(console, prices.NOTE, "dim")
    for number, price, size, drop, ending in prices.stages(report)[1]:
        _paragraph(console, f"stage {number}: a coded bit cost {price}, {size}, drop {drop} on the search samples{ending and f' ({ending})'}")
    if report.archive_stages:
        _paragraph(console, prices.STAGES_NOTE, "dim")
    for d in report.decisions:
        console.print()
        console.print(f"[bold]{escape(d.site)}[/] {escape(d.op)}: {escape(_became(d, report.baseline.latency_ms.estimated))}", highlight=False, soft_wrap=True)
        _paragraph(console, d.why)
        for text in prices.alternatives(report, d):
            _paragraph(console, text)
        if d.considered:
            _paragraph(console, f"considered: {'; '.join(d.considered)}", "dim")
    if report.refused:
        console.print("\n[bold]left alone[/]")
        for r in report.refused:
            _paragraph(console, f"{r.where}: {r.reason}")
    if report.close_up is not None:
        console.print()
        for text in closeup.lines(report.close_up, report.metric):
            _paragraph(console, text, "", 0)


def _became(d: DecisionRecord, estimated: bool) -> str:
    """``static_int8 (bits=8): 16 x 16 x 3 x 3, 8 bits, 9,216 -> 2,368 bytes, 0.0423 -> 0.0201 ms``."""
    size = rows.from_to(d.cost.bytes_before, d.cost.bytes_measured, lambda v: f"{v:,.0f}")
    latency = rows.from_to(d.cost.ms_before, d.cost.ms_measured, lambda v: f"{v:.4f}")
    bits = rows.bits_text(d)
    facts = (
        d.after if d.before == d.after else f"{d.before} -> {d.after}",
        bits and ("float32" if d.bits == 32 else f"{bits} bits"),
        size and f"{size} bytes",
        latency and estimate_text(f"{latency} ms", estimated),
    )
    return f"{d.label or rows.method_text(d)}: {', '.join(f for f in facts if f)}"


def _paragraph(console: Console, text: str, style: str = "", indent: int = 2) -> None:
    """Wrapped under its indent for a person; one line each for a program that reads."""
    body = Text(text, style=style)
    if console.is_terminal:
        console.print(Padding(body, (0, 0, 0, indent)))
    else:
        console.print(Text(" " * indent).append_text(body), soft_wrap=True)
