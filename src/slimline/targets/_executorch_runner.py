"""Runs a .pte file with ExecuTorch and PyTorch's tensors alone: for the process that checks it."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MARK = "slimline:"  # stands before the names that a file holds
MOST = 16  # samples that a file takes at once: its outputs are planned for so many


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # every import says that the interface is experimental
            from executorch.extension.pybindings import portable_lib
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        self.payload = payload  # the runtime reads from it
        with contextlib.redirect_stderr(io.StringIO()):
            self.module = portable_lib._load_for_executorch_from_buffer(payload, enable_etdump=profile)
        self.about = self.module.method_meta("forward")
        self.inputs = input_names(payload, self.about.num_inputs())

    def tensors(self, given: Mapping[str, Array]) -> list[Any]:
        """The inputs in the file's order, as the runtime takes them."""
        import torch

        return [torch.from_numpy(np.ascontiguousarray(given[name])) for name in self.inputs]

    def call(self, tensors: Sequence[Any]) -> Any:
        """Outputs for at most ``MOST`` samples, as tensors that are overwritten by the next call."""
        return self.module.forward(tensors, clone_outputs=False)

    def __call__(self, given: Mapping[str, Array]) -> list[Array]:
        tensors = self.tensors(given)
        parts = []
        for start in range(0, len(tensors[0]), MOST):
            parts.append([np.array(t.numpy()) for t in self.call([t[start : start + MOST] for t in tensors])])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def load(file: str, threads: int) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    """The function from inputs by name to outputs."""
    with open(file, "rb") as stream:
        return Runner(stream.read(), threads)
