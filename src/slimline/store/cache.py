"""Results by the content that they were computed from; private to the user."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from slimline.core.plan import Fingerprint


class Cache:
    """``key -> tensors and a JSON value`` in one folder (mode 0700).

    A damaged entry counts as absent and is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, key: str) -> tuple[dict[str, torch.Tensor], Any] | None:
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                value = json.loads(file.metadata()["value"])
                return {name: file.get_tensor(name) for name in file.keys()}, value  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, KeyError, ValueError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], value: Any = None) -> None:
        """Store an entry; it appears whole or not at all."""
        descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(descriptor)
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, name, metadata={"value": json.dumps(value)})
            os.replace(name, self._path(key))
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def key(*parts: Any) -> str:
    """A name from JSON-able parts, 32 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, 32 hex digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()[:32]


def fingerprint(model: nn.Module, data: Mapping[str, torch.Tensor]) -> Fingerprint:
    """Digests of a model's architecture (modules, parameter names, shapes, types), of its weights, and of data."""
    state = model.state_dict()
    shape = [(n, type(m).__name__, m.extra_repr()) for n, m in model.named_modules()], [(n, str(t.dtype), tuple(t.shape)) for n, t in state.items()]
    return Fingerprint(architecture=key(shape), weights=digest_tensors(state), data=digest_tensors(data))
