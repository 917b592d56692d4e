"""Folders that only their owner may read: a run's journal and cache hold what its data look like."""

from __future__ import annotations

from pathlib import Path

STATE = ".slimline"  # in a run's folder: its journal and its cache
MODE = 0o700


def private(folder: Path) -> Path:
    """Make ``folder``. It, and those above it down from the nearest ``.slimline``, have mode 0700 then, even if they were there before.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     oct(private(Path(root, "out", ".slimline", "cache")).stat().st_mode & 0o777)
        '0o700'
    """
    folder.mkdir(parents=True, exist_ok=True, mode=MODE)
    outermost = next((p for p in (folder, *folder.parents) if p.name == STATE), folder)
    for part in (folder, *folder.parents):
        if part.stat().st_mode & 0o777 != MODE:
            part.chmod(MODE)
        if part == outermost:
            break
    return folder
