"""An append-only record of a run, from which it can go on after any interruption."""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from slimline.errors import JournalError, OutputError
from slimline.store.private import STATE, private

FILE = "journal.jsonl"


class Journal:
    """One event a line, each with a checksum; a line is either whole on the disk or ignored.

    The first line is the header: what the run was asked for. Each line holds the seconds of work so far, so that a run that goes
    on counts those already spent (``spent``); what was done after the last event is lost with its seconds.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal.open(Path(folder), {"job": "a"}) as journal:
        ...         journal.append("trial", {"n": 1}, elapsed=0.5)
        ...     with Journal.open(Path(folder), {"job": "a"}, resume=True) as journal:
        ...         [e["n"] for e in journal.events("trial")], journal.elapsed("trial"), journal.spent
        ([1], 0.5, 0.5)
    """

    def __init__(self, path: Path, handle: FileIO, lines: list[dict[str, Any]]) -> None:
        self.path = path
        self._handle = handle
        self._lines = lines

    @classmethod
    def open(cls, directory: Path, header: dict[str, Any], *, resume: bool = False) -> Journal:
        """Open ``directory/journal.jsonl`` for this job alone; without ``resume`` it starts empty.

        Raises:
            OutputError: another run has it open.
            JournalError: it is damaged before its last line, or belongs to another job.
        """
        private(directory)
        path = directory / FILE
        handle = path.open("ab", buffering=0)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.close()
            raise OutputError(f"Another run is writing to {directory.parent}.", hint="Wait for it, or give another --out.") from error
        try:
            if not resume:
                handle.truncate(0)
            lines = _read(path, handle)
            journal = cls(path, handle, lines)
            if lines:
                _check(lines[0], json.loads(json.dumps(header)), directory)
            else:
                journal.append("header", header)
        except BaseException:
            handle.close()
            raise
        return journal

    def append(self, kind: str, data: dict[str, Any], elapsed: float = 0.0) -> None:
        """Write one event through to the disk. ``elapsed``: seconds of work so far, those of earlier runs included.

        Raises:
            OSError: the disk is full; the journal is as it was before.
        """
        text = json.dumps({"kind": kind, "elapsed": round(elapsed, 3), "data": data}, sort_keys=True, separators=(",", ":"))
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        end = os.fstat(self._handle.fileno()).st_size
        try:
            while line:
                line = line[self._handle.write(line) or 0 :]
            os.fsync(self._handle.fileno())
        except OSError:
            os.ftruncate(self._handle.fileno(), end)
            raise
        self._lines.append(json.loads(text))

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """The data of all events of a kind, oldest first."""
        return (dict(line["data"]) for line in self._lines if line["kind"] == kind)

    def last(self, kind: str) -> dict[str, Any] | None:
        """The data of the latest event of a kind."""
        return next((dict(line["data"]) for line in reversed(self._lines) if line["kind"] == kind), None)

    def elapsed(self, kind: str) -> float:
        """Seconds of work up to the latest event of a kind; 0 without one."""
        return next((float(line["elapsed"]) for line in reversed(self._lines) if line["kind"] == kind), 0.0)

    @property
    def spent(self) -> float:
        """Seconds of work up to the last event."""
        return max((float(line["elapsed"]) for line in self._lines), default=0.0)

    def close(self) -> None:
        """Give the lock back."""
        self._handle.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def busy(state: Path) -> bool:
    """Whether a run holds the lock of the journal in ``state``: its own, or for a cache that several targets share, one of theirs."""
    for journal in (state / FILE, *state.parent.glob(f"*/{STATE}/{FILE}")):
        if not journal.is_file():
            continue
        with journal.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
    return False


def check_free(out: Path, *, force: bool = False) -> None:
    """Whether a new run may write to ``out``; ``force``: in the place of an earlier one.

    Raises:
        OutputError: a run is going on there, or it is not empty.
    """
    if busy(out / STATE):
        raise OutputError(f"Another run is writing to {out}.", hint="Wait for it, or give another --out.")
    if not force and out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{out} is not empty.", hint="Give another --out, --resume to go on with an interrupted run, or --force to replace it.")


def _check(first: dict[str, Any], header: dict[str, Any], directory: Path) -> None:
    made = first["data"] if first["kind"] == "header" else {}
    if made != header:
        names = [name for name in sorted({*made, *header}) if made.get(name) != header.get(name)]
        inner = {n for name in names for n in _different(made.get(name), header.get(name))}
        raise JournalError(
            f"The run in {directory.parent} was made with other arguments ({', '.join(sorted(inner) or names)}).",
            hint="Use the same arguments with --resume, or --force to start afresh.",
        )


def _different(made: Any, wanted: Any) -> list[str]:
    """The names of what differs inside of two mappings; none for other values."""
    if not isinstance(made, dict) or not isinstance(wanted, dict):
        return []
    return [str(name) for name in {*made, *wanted} if made.get(name) != wanted.get(name)]


def _read(path: Path, handle: FileIO) -> list[dict[str, Any]]:
    """All whole lines; a torn last one (killed while writing) is cut off."""
    raw = path.read_bytes()
    lines: list[dict[str, Any]] = []
    position = 0
    for number, line in enumerate(raw.split(b"\n"), 1):
        end = position + len(line) + 1
        if not line and end > len(raw):
            break
        try:
            check, _, text = line.partition(b" ")
            if end > len(raw) or int(check, 16) != zlib.crc32(text):
                raise ValueError
            lines.append(json.loads(text))
        except ValueError:
            if end < len(raw):
                raise JournalError(f"Line {number} of {path} is damaged.", hint="Start afresh with --force.") from None
            handle.truncate(position)
            break
        position = end
    return lines
