"""An ONNX file as a torch module, checked against ONNX Runtime before anything else is done with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError
from slimline.sources import _child
from slimline.sources._lift import identifier
from slimline.sources._tensor_file import read_tensors
from slimline.sources.foreign import ForeignModel, check_outputs, random_samples

RUN_MEMORY = 8 * 2**30
RUN_SECONDS = 120
OPEN_SECONDS = 30
CHECKED = 4  # samples
FREE_BATCH = 2


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A parsed file. ``parsed`` is what ``_onnx_parse.parse`` gave."""

    path: Path
    parsed: Mapping[str, Any]
    tensors: list[torch.Tensor]
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> OnnxModel:
        """Parse a file in a child process.

        Raises:
            ModelError: what is wrong with it.
        """
        with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
            flat = Path(folder, "tensors")
            parsed = _child.parse("slimline.sources._onnx_parse:parse", path, tensors=str(flat))
            tensors = read_tensors(flat, parsed["tensors"])
        taken: set[str] = set()
        return cls(path, parsed, tensors, tuple(identifier(d["name"], taken) for d in parsed["graph"]["inputs"]))

    @property
    def inputs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.parsed["graph"]["inputs"]
        return found

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, or ``None``: it is free."""
        sizes = {d["shape"][0] for d in self.inputs if d["shape"] and isinstance(d["shape"][0], int)}
        return sizes.pop() if len(sizes) == 1 else None

    def declared(self) -> Samples | None:
        """Two samples of the shapes that the file declares, if it declares them."""
        return random_samples([(d["shape"], d["dtype"] or "") for d in self.inputs])

    def module(self, example: Samples) -> nn.Module:
        """The torch module, which gives what ONNX Runtime gives for the file.

        Raises:
            ModelError: operations that cannot be expressed, or another result.
            DataError: the example does not have the file's inputs.
        """
        from slimline.sources._onnx_graph import lift_graph

        values = self._values(example)
        size = self.batch or FREE_BATCH
        pairs = [(_batch(v, size), _batch(v, size + 1)) for v in values]
        try:
            module = lift_graph(self.parsed, self.tensors, self.names, pairs, fixed_batch=self.batch is not None)
        except ModelError as error:
            fixed = f"The file fixes a batch of {self.batch}, which its numbers contain: export it with a free one." if self.batch is not None else ""
            raise ModelError(f"{self.path}: {error.message}", hint=error.hint or fixed) from error
        self._check(module, [_batch(v, CHECKED) for v in values])
        return module

    def _values(self, example: Samples) -> list[torch.Tensor]:
        """The example's tensors in the order of the file's inputs."""
        free = [n for n in self.names if n not in example.kwargs]
        given = dict(zip(free, example.args, strict=False)) | example.kwargs
        if len(example.args) > len(free) or set(given) != set(self.names):
            wanted = ", ".join(f"{d['name']} {d['dtype'] or ''} {d['shape'] if d['shape'] is not None else ''}".strip() for d in self.inputs)
            raise DataError(
                f"{self.path} takes {len(self.names)} inputs ({wanted}), the data gives {', '.join(given) or 'none'}.",
                hint="Return one tensor per input: a tuple in this order, or a dict by these names.",
            )
        for described, name in zip(self.inputs, self.names, strict=True):
            tensor, shape = given[name], described["shape"]
            kind = str(tensor.dtype).removeprefix("torch.")
            fits = shape is None or (
                len(shape) == tensor.ndim and all(not isinstance(s, int) or s == n for s, n in list(zip(shape, tensor.shape, strict=True))[1:])
            )
            if not fits or (described["dtype"] is not None and described["dtype"] != kind):
                raise DataError(
                    f"{self.path} takes {described['name']} as {described['dtype']} {shape}, the data gives {kind} {list(tensor.shape)}.",
                    hint="Return inputs as the file takes them, with the samples first.",
                )
        return [given[n] for n in self.names]

    def _check(self, module: nn.Module, values: list[torch.Tensor]) -> None:
        """The module's outputs against those of the file in ONNX Runtime, for a batch that the file need not allow."""
        wanted = run_file(self.path, self.inputs, values, self.batch)
        with torch.no_grad():
            got = _pytree.tree_leaves(module(*values))
        check_outputs(self.path, "ONNX Runtime", [d["name"] for d in self.parsed["graph"]["outputs"]], got, wanted)


def _batch(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """``size`` samples, the given ones over and over."""
    return tensor[torch.arange(size) % tensor.shape[0]]


def run_file(path: Path, inputs: list[dict[str, Any]], values: list[torch.Tensor], batch: int | None) -> list[torch.Tensor]:
    """What ONNX Runtime gives for the file, run in a child process, in pieces of the batch size that it fixes.

    Raises:
        ModelError: the runtime refuses the file or the inputs.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
        for place, value in enumerate(values):
            np.save(Path(folder, f"in_{place}.npy"), value.numpy())
        asked = {"names": [d["name"] for d in inputs], "folder": folder, "batch": batch or len(values[0])}
        answer = _child.parse("slimline.sources._onnx_run:run", path, memory=RUN_MEMORY, seconds=RUN_SECONDS, **asked)
        return [torch.from_numpy(np.load(Path(folder, f"out_{i}.npy"), allow_pickle=False)) for i in range(answer["outputs"])]


def check_artefact(path: Path) -> None:
    """An ONNX file as a runtime in this process may open it: whole, all of its tensors in it, and taken by ONNX Runtime in a child process with limits.

    Raises:
        ModelError: what is wrong with it.
    """
    _child.parse("slimline.sources._onnx_run:check", path, seconds=OPEN_SECONDS)


def open_onnx(path: Path, *, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress MODEL.onnx --data FILE.py``.

    Raises:
        ModelError: the file is damaged, hostile, or holds what cannot be expressed.
    """
    model = OnnxModel.read(path)
    arguments = {d["name"]: n for d, n in zip(model.inputs, model.names, strict=True)}
    return ForeignModel.with_task(path, model.module, data=data, metric=metric, declared=model.declared, arguments=arguments)
