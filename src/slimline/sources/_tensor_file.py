"""Tensors that a parser hands over: one flat file of little-endian bytes, and where each tensor lies in it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slimline.errors import ModelError

ALIGNMENT = 64
CHUNK = 1 << 20
WIDTHS = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1,
}  # fmt: skip


def count(dims: list[int], what: str) -> int:
    """Elements of a shape that a file claims.

    Raises:
        ModelError: a dimension is negative, or the product is beyond any memory.
    """
    total = 1
    for d in dims:
        if d < 0:
            raise ModelError(f"{what} has a negative size: {dims[:8]}.")
        total *= d
        if total > 2**48:
            raise ModelError(f"{what} claims a shape of {dims[:8]}, more than any memory holds.")
    return total


@dataclass
class TensorWriter:
    """Writes tensors one after the other; ``entries`` says where each lies."""

    path: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    _end: int = 0

    def add(self, name: str, dtype: str, shape: list[int], payload: bytes) -> int:
        """Append a tensor; its number."""
        with self.path.open("ab") as file:
            file.write(b"\0" * (self._start() - self._end))
            file.write(payload)
        return self._entry(name, dtype, shape, len(payload))

    def copy(self, name: str, dtype: str, shape: list[int], source: IO[bytes], nbytes: int) -> int:
        """Append ``nbytes`` of an open file, in pieces.

        Raises:
            ModelError: the disk has no room for them, or the file ends before.
        """
        free = shutil.disk_usage(self.path.parent).free
        if nbytes > free // 2:
            raise ModelError(f"{name} takes {nbytes:,} bytes, more than half of what is free on the disk.", hint="Free some space, or set TMPDIR.")
        left = nbytes
        with self.path.open("ab") as file:
            file.write(b"\0" * (self._start() - self._end))
            while left:
                piece = source.read(min(CHUNK, left))
                if not piece:
                    raise ModelError(f"{name}: its file ended {left:,} bytes too early.")
                file.write(piece)
                left -= len(piece)
        return self._entry(name, dtype, shape, nbytes)

    def _start(self) -> int:
        return -(-self._end // ALIGNMENT) * ALIGNMENT

    def _entry(self, name: str, dtype: str, shape: list[int], nbytes: int) -> int:
        start = self._start()
        self.entries.append({"name": name, "dtype": dtype, "shape": shape, "offset": start})
        self._end = start + nbytes
        return len(self.entries) - 1


def read_tensors(path: Path, entries: list[dict[str, Any]]) -> list[Any]:
    """The tensors, as torch tensors of their own memory.

    Raises:
        ModelError: an entry does not lie in the file.
    """
    import numpy as np
    import torch

    size = os.path.getsize(path) if path.exists() else 0
    found = []
    with path.open("rb") if path.exists() else open(os.devnull, "rb") as file:
        for entry in entries:
            numel = count(entry["shape"], entry["name"])
            nbytes = numel * WIDTHS[entry["dtype"]]
            if entry["offset"] + nbytes > size:
                raise ModelError(f"{entry['name']} does not lie in the file that its parser wrote.")
            file.seek(entry["offset"])
            raw = np.frombuffer(bytearray(file.read(nbytes)), dtype=np.uint8)
            dtype = getattr(torch, entry["dtype"])
            flat = torch.from_numpy(raw).view(dtype) if nbytes else torch.zeros(0, dtype=dtype)
            found.append(flat.reshape(entry["shape"]))
    return found
