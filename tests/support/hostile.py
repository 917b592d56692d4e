"""What the corpora of hostile files are made with."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def raw(folder: Path, content: bytes, name: str = "model.onnx") -> Path:
    (folder / name).write_bytes(content)
    return folder / name
