"""Results by the content that they were computed from; private to the user."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from slimline.core.plan import Fingerprint
from slimline.store.private import private

KIND, PART = ".safetensors", ".part"


class Cache:
    """``key -> tensors and a JSON value`` in one folder (mode 0700), for one run at a time (the journal's lock sees to that) and its workers.

    ``own``: this is the run's own process, and no worker writes yet; what a killed one left half-written is removed. A damaged entry (cut off, or its bytes changed) counts as absent and is removed.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(Path(folder) / "cache")
        ...     cache.put(key("loss", 3), {"x": torch.ones(2)}, {"loss": 0.5})
        ...     cache.get(key("loss", 3)), cache.get(key("loss", 4))
        (({'x': tensor([1., 1.])}, {'loss': 0.5}), None)
    """

    def __init__(self, folder: Path, *, own: bool = True) -> None:
        self.folder = folder
        private(folder)
        for left in folder.glob(f"*{PART}") if own else ():
            left.unlink(missing_ok=True)

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, damaged or not."""
        return self._path(key).exists()

    def exported(self, key: str) -> bytes:
        """The entry as bytes, for a cache on another machine.

        Raises:
            OSError: there is none.
        """
        return self._path(key).read_bytes()

    def imported(self, key: str, content: bytes) -> None:
        """Store what another cache ``exported``; damage is found by ``get``, as with any entry.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        descriptor, part = tempfile.mkstemp(dir=self.folder, suffix=PART)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(part, self._path(key))
        finally:
            Path(part).unlink(missing_ok=True)

    def names(self) -> set[str]:
        return {path.stem for path in self.folder.glob(f"*{KIND}")}

    def get(self, key: str) -> tuple[dict[str, torch.Tensor], Any] | None:
        """The entry, ``None`` if there is none or it was damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if _seal(tensors, about["value"]) != about["seal"]:
                raise ValueError("the content is not what was written")
            return tensors, json.loads(about["value"])
        except (SafetensorError, OSError, KeyError, ValueError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], value: Any = None) -> None:
        """Store an entry; it appears whole or not at all. Tied tensors are stored apart. ``value``: what JSON can hold.

        Raises:
            OSError: the disk is full, or the folder is not writable.
        """
        text = json.dumps(value)
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        descriptor, part = tempfile.mkstemp(dir=self.folder, suffix=PART)
        os.close(descriptor)
        try:
            save_file(plain, part, metadata={"value": text, "seal": _seal(plain, text)})
            os.replace(part, self._path(key))
        except SafetensorError as error:  # how safetensors says that the disk is full: "... (os error 28)"
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(self._path(key))) from error
        finally:
            Path(part).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{KIND}"


def _seal(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    return key(digest_tensors(tensors), text)


def key(*parts: Any) -> str:
    """A name from what JSON can hold, tensors and ``Data``: 32 hex digits. Equal parts give equal names, in any process.

    Raises:
        TypeError: a part of another type, which may not be the same in another process.

    Example:
        >>> key("loss", {"a": 1, "b": 2}) == key("loss", {"b": 2, "a": 1}), key("loss", 1) == key("loss", 2)
        (True, False)
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:32]


def _plain(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return digest_tensors({"": part})
    if isinstance(part, pydantic.BaseModel):
        return part.model_dump(mode="json")
    raise TypeError(f"a {type(part).__name__} has no content to name it by")


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names: 32 hex digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def fingerprint(model: nn.Module, data: Mapping[str, torch.Tensor]) -> Fingerprint:
    """Digests of a model's architecture, of its weights, and of data.

    Architecture: every module's name, class and own description (``extra_repr``: kernel sizes, strides); every parameter's and
    buffer's name, type and shape, and which of them are one tensor. Buffers count whether or not they are saved. What
    ``forward`` does beyond calling the modules cannot be told from outside, and is not part of it.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> a, b = fingerprint(one, {}), fingerprint(other, {})
        >>> a.architecture == b.architecture, a.weights == b.weights
        (True, False)
    """
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    tensors = [(name, str(t.dtype), list(t.shape), first.setdefault(id(t), name)) for name, t in sorted(state.items())]
    modules = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    return Fingerprint(architecture=key(modules, tensors), weights=digest_tensors(state), data=digest_tensors(data))
