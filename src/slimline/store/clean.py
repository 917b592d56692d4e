"""The caches of runs: where they are, how much they hold, and removing them; artefacts, reports and journals stay."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimline.store.journal import busy
from slimline.store.private import STATE

CACHES = ("cache", "finalists", "workers")  # measured options and trained weights; working copies of the last candidates' files; what workers printed
DEPTH = 8  # folders below the one that is cleaned


@dataclass(frozen=True)
class Found:
    """One run's state folder. ``files``: what would be removed. ``busy``: a run is writing there."""

    folder: Path
    files: tuple[Path, ...]
    bytes: int
    busy: bool


def find(root: Path) -> Iterator[Found]:
    """The state folders at and below ``root`` that hold a cache; links are not followed."""
    for state in _states(root, DEPTH):
        files = tuple(sorted(f for name in CACHES for f in _files(state / name)))
        if files:
            yield Found(state, files, sum(f.stat(follow_symlinks=False).st_size for f in files), busy(state))


def remove(found: Found) -> None:
    """Remove what was found, and the folders that are empty then."""
    for file in found.files:
        file.unlink(missing_ok=True)
    for name in CACHES:
        with contextlib.suppress(OSError):  # something else lies there, which stays
            (found.folder / name).rmdir()


def _states(root: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(root), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            continue
        if entry.name == STATE:
            yield Path(entry.path)
        elif depth and not entry.name.startswith("."):
            yield from _states(Path(entry.path), depth - 1)


def _files(folder: Path) -> list[Path]:
    """The files that lie in ``folder`` itself; none if it is a link or not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [Path(e.path) for e in os.scandir(folder) if e.is_file(follow_symlinks=False)]
