"""Files that appear whole or not at all, and a disk that refuses them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from slimline.errors import OutputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)  # what is wrong with a path, not with us


def write_whole(file: Path, content: bytes) -> None:
    """Write ``content`` beside ``file`` and give it that name then: a reader sees what was there before, or all of it.

    Raises:
        OSError: naming ``file``; nothing half-written stays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a"), b"1")
        ...     Path(folder, "a").read_bytes(), os.listdir(folder)
        (b'1', ['a'])
    """
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def written(out: Path, option: str = "--out", again: str = "run it again") -> Iterator[None]:
    """What the disk refuses below ``out``, or on the way there, is the user's to mend. ``option``: what names another place; ``again``: what to do then.

    Raises:
        OutputError: it is full, or ``out`` cannot be made or written.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in DISK_FULL:
            raise OutputError(
                f"The disk is full{where}: {out} could not be written.",
                hint=f"Free some space, or name another place with {option} and TMPDIR, then {again}.",
            ) from error
        gone = error.errno == errno.ENOENT and not os.path.lexists(out)
        if error.filename and (error.errno in UNUSABLE or gone):
            folder, named = Path(os.path.realpath(out)), Path(os.path.realpath(str(error.filename)))
            if named in (folder, *folder.parents) or folder in named.parents:
                raise OutputError(f"{out} cannot be written{where}: {error.strerror}.", hint=f"Name another place with {option}.") from error
        raise
