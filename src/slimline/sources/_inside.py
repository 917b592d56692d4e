"""Files that a model file or folder names: regular ones below its own folder, reached without links."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from slimline.errors import ModelError

DO_NOT_USE = "Do not use this file."
NO_LINKS = "It must lie there as a file and not as a link: cp -rL FOLDER COPY makes files of links."


def open_inside(folder: Path, location: str, what: str) -> BinaryIO:
    """The file ``location`` of ``folder``, opened for reading; ``what`` an error is about.

    Every part of the path is opened without following links, and a pipe is not waited for.

    Raises:
        ModelError: the path leaves the folder, or there is no regular file.
    """
    parts = Path(location.replace("\\", "/")).parts
    if not parts or os.path.isabs(location) or "\\" in location or ".." in parts or "\0" in location or ":" in parts[0]:
        raise ModelError(f"{what} is stored in {location[:200]!r}, which does not stay in the model's folder.", hint=DO_NOT_USE)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            os.close(directory)
            directory = inner
        # not blocking: opening a pipe would wait for its writer
        handle = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError as error:
        raise ModelError(f"{what}: {location[:200]} cannot be opened: {error.strerror}.", hint=NO_LINKS) from error
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ModelError(f"{what}: {location[:200]} is no regular file.", hint=DO_NOT_USE)
    return os.fdopen(handle, "rb")


def size_of(file: BinaryIO) -> int:
    """Bytes of an opened file."""
    return os.fstat(file.fileno()).st_size
