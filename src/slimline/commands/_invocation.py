"""What a command knows of its own run, and where its words go."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
ONE_LINE = 10_000  # columns: every row of a table is a line
STATUS_OF_VERDICT = {"pass": 0, "fail": 3, "inconclusive": 4}


@dataclass(frozen=True)
class Invocation:
    """When the command began, and what was typed."""

    started: float
    command: str


def console(stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


@contextlib.contextmanager
def waiting(text: str, stderr: bool, quiet: bool) -> Iterator[None]:
    """Show a person, as long as it lasts, what takes seconds (importing PyTorch, reading data); a log gets nothing."""
    to = console(stderr)
    if quiet or not to.is_terminal:
        yield
        return
    from rich.markup import escape

    with to.status(escape(text)):
        yield


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    to = console(False)
    if not to.is_terminal:
        to.width = ONE_LINE  # for scripts
    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    to.print(table)


@contextlib.contextmanager
def reserved_stdout(reserved: bool) -> Iterator[TextIO]:
    """Standard output, for the result alone if ``reserved``: what anything prints meanwhile goes to standard error."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if reserved else contextlib.nullcontext():
        yield stdout
