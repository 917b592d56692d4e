"""An append-only record of a run, from which it can go on after any interruption."""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from slimline.errors import JournalError, OutputError

FILE = "journal.jsonl"


class Journal:
    """One event a line, each with a checksum; a line is either whole on the disk or ignored.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal.open(Path(folder), {"job": "a"}) as journal:
        ...         journal.append("trial", {"n": 1}, elapsed=0.5)
        ...     with Journal.open(Path(folder), {"job": "a"}, resume=True) as journal:
        ...         [e["n"] for e in journal.events("trial")]
        [1]
    """

    def __init__(self, path: Path, handle: TextIO, lines: list[dict[str, Any]]) -> None:
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
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / FILE
        handle = path.open("a+", encoding="utf-8")
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
            if not lines:
                journal.append("header", header)
            elif {k: v for k, v in lines[0]["data"].items() if header.get(k) != v} or lines[0]["kind"] != "header":
                changed = sorted(k for k in header if lines[0]["data"].get(k) != header[k])
                raise JournalError(f"The run in {directory.parent} was made with other {', '.join(changed) or 'arguments'}.", hint="Use the same arguments with --resume, or --force to start afresh.")
        except BaseException:
            handle.close()
            raise
        return journal

    def append(self, kind: str, data: dict[str, Any], elapsed: float = 0.0) -> None:
        """Write one event through to the disk. ``elapsed``: seconds of work so far, those of earlier runs included."""
        body = {"kind": kind, "elapsed": round(elapsed, 3), "data": data}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
        self._handle.write(f"{zlib.crc32(text.encode()):08x} {text}\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._lines.append(json.loads(text))

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """The data of all events of a kind, oldest first."""
        return (dict(line["data"]) for line in self._lines if line["kind"] == kind)

    def last(self, kind: str) -> dict[str, Any] | None:
        return next((dict(line["data"]) for line in reversed(self._lines) if line["kind"] == kind), None)

    @property
    def spent(self) -> float:
        """Seconds of work up to the last event."""
        return max((float(line["elapsed"]) for line in self._lines), default=0.0)

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: Path, handle: TextIO) -> list[dict[str, Any]]:
    """All whole lines; a torn last one (killed while writing) is cut off."""
    raw = path.read_bytes()
    lines: list[dict[str, Any]] = []
    position = 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            check, _, text = line.decode().partition(" ")
            if not line.endswith(b"\n") or int(check, 16) != zlib.crc32(text.rstrip("\n").encode()):
                raise ValueError
            lines.append(json.loads(text))
        except ValueError:
            if position + len(line) < len(raw):
                raise JournalError(f"Line {number} of {path} is damaged.", hint="Start afresh with --force.") from None
            handle.truncate(position)
            break
        position += len(line)
    return lines
