"""What a command knows of its own run, and where its words go."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from slimline.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = 130
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

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    console(False).print(table)


@contextlib.contextmanager
def reserved_stdout(reserved: bool) -> Iterator[TextIO]:
    """Standard output, for the result alone if ``reserved``: what anything prints meanwhile goes to standard error."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if reserved else contextlib.nullcontext():
        yield stdout


@contextlib.contextmanager
def written(out: Path) -> Iterator[None]:
    """A full or locked disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in DISK_FULL:
            raise OutputError(
                f"The disk is full{where}: {out} could not be written.",
                hint="Free some space, or name another place with --out and TMPDIR, then go on with --resume.",
            ) from error
        if (
            error.errno in NOT_WRITABLE
            and error.filename
            and Path(out).resolve() in (Path(str(error.filename)).resolve(), *Path(str(error.filename)).resolve().parents)
        ):
            raise OutputError(f"{out} cannot be written{where}: {error.strerror}.", hint="Name another folder with --out.") from error
        raise
