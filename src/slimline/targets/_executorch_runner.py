"""Runs a .pte file with ExecuTorch and PyTorch's tensors alone: for the process that checks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MARK = "slimline:"  # stands before the names that a file holds


def described(text: str) -> dict[str, Any]:
    """The names in a file's description of its inputs; empty where another tool wrote it."""
    found: dict[str, Any] = json.loads(text.removeprefix(MARK)) if text.startswith(MARK) else {}
    return found


def input_names(payload: bytes, count: int) -> tuple[str, ...]:
    """The file's own names, or numbers."""
    start = payload.find(MARK.encode())
    about = described(payload[start : payload.find(b"\0", start)].decode()) if start >= 0 else {}
    return tuple(about.get("inputs") or (f"input_{place}" for place in range(count)))


class Runner:
    """A file in ExecuTorch. The pool of threads belongs to the process: no file may be run that was opened for another number."""

    def __init__(self, payload: bytes, threads: int = 1, *, profile: bool = False) -> None:
        import executorch.kernels.quantized  # noqa: F401 - what reads integer embeddings
        import torch  # noqa: F401 - whose libraries the binding needs
        from executorch.extension.pybindings import _C as runtime  # not portable_lib, which imports the exporter

        self.payload = payload  # the runtime reads from it
        if runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)
        self.module = runtime._load_for_executorch_from_buffer(payload, enable_etdump=profile)
        self.about = self.module.method_meta("forward")
        self.inputs = input_names(payload, self.about.num_inputs())
        self.most = int(self.about.input_tensor_meta(0).sizes()[0])  # samples that it takes at once

    def tensors(self, given: Mapping[str, Array]) -> list[Any]:
        """The inputs in the file's order, as the runtime takes them."""
        import torch

        return [torch.from_numpy(np.ascontiguousarray(given[name])) for name in self.inputs]

    def call(self, tensors: Sequence[Any]) -> Any:
        """Outputs for at most ``most`` samples, as tensors that are overwritten by the next call."""
        return self.module.forward(tensors, clone_outputs=False)

    def __call__(self, given: Mapping[str, Array]) -> list[Array]:
        tensors = self.tensors(given)
        parts = []
        for start in range(0, len(tensors[0]), self.most):
            parts.append([np.array(t.numpy()) for t in self.call([t[start : start + self.most] for t in tensors])])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def load(file: str, threads: int) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    """The function from inputs by name to outputs."""
    with open(file, "rb") as stream:
        return Runner(stream.read(), threads)
