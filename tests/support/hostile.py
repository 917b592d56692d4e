"""What the corpora of hostile files are made with."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Case = Callable[[Path], Path]


class Corpus(dict[str, Case]):
    """Name -> what writes the file into a folder and gives its path."""

    def case(self, function: Case) -> Case:
        self[function.__name__] = function
        return function


class Payload:
    """Unpickled, it leaves a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch CODE_RAN",)


PICKLE = pickle.dumps(Payload())


def raw(folder: Path, content: bytes, name: str = "model.onnx") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def zipped(entries: Mapping[str, str | bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def hole(path: Path, nbytes: int) -> Path:
    """A file that claims so many bytes and has none on the disk."""
    with path.open("wb") as file:
        file.truncate(nbytes)
    return path
