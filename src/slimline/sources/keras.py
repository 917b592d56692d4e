"""A Keras file (``.keras``, ``.h5``) as a torch module, from its configuration and its weights alone."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError, UsageError
from slimline.sources import _child
from slimline.sources._keras_run import unfit
from slimline.sources._lift import identifier
from slimline.sources._tensor_file import read_tensors
from slimline.sources.foreign import ForeignModel, check_outputs, random_samples

SMALL_BATCH = 2
CHECKED = 4  # samples
RUN_MEMORY = 8 * 2**30
RUN_SECONDS = 120


@dataclass(frozen=True, eq=False)
class KerasModel:
    """A parsed file. ``inputs``: name, shape, dtype; ``names``: what the module's arguments are called."""

    path: Path
    parsed: Mapping[str, Any]
    tensors: list[torch.Tensor]
    inputs: list[tuple[str, list[int | None] | None, str]]
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> KerasModel:
        """Parse a file in a child process.

        Raises:
            ModelError: what is wrong with it.
            UsageError: h5py is not installed.
        """
        from slimline.sources._keras_graph import input_shapes

        _child.regular(path)
        if importlib.util.find_spec("h5py") is None:
            raise UsageError(f"{path} is a Keras file, and h5py is not installed.", hint="Install it with: pip install 'slimline[keras]'")
        with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
            flat = Path(folder, "tensors")
            parsed = _child.parse("slimline.sources._keras_parse:parse", path, tensors=str(flat))
            tensors = read_tensors(flat, parsed["tensors"])
        try:
            inputs = input_shapes(parsed["config"])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{path}: its configuration describes no model ({type(error).__name__}: {error}).", hint="Save the whole model again.") from error
        taken: set[str] = set()
        return cls(path, parsed, tensors, inputs, tuple(identifier(name, taken) for name, _, _ in inputs))

    def declared(self) -> Samples | None:
        """Two samples of the declared shapes, if they are declared."""
        return random_samples([(shape, kind) for _, shape, kind in self.inputs])

    def module(self, example: Samples) -> nn.Module:
        """The torch module; inputs are as Keras takes them: images ``[N, H, W, C]``.

        Raises:
            ModelError: layers that cannot be expressed.
            DataError: the example does not have the model's inputs.
        """
        from slimline.sources._keras_graph import lift_model

        values = self._values(example)
        pairs = [(v[torch.arange(SMALL_BATCH) % len(v)], v[torch.arange(SMALL_BATCH + 1) % len(v)]) for v in values]
        try:
            return lift_model(self.parsed, self.tensors, self.names, pairs)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error.message}", hint=error.hint) from error
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ModelError(f"{self.path}: its configuration describes no model ({type(error).__name__}: {error}).", hint="Save the model again.") from error

    def compared(self, example: Samples, notes: list[str]) -> nn.Module:
        """The torch module once its outputs are those of Keras; where that cannot be told, ``notes`` gets the reason.

        Raises:
            ModelError: Keras gives other outputs, or as ``module``.
        """
        module = self.module(example)
        values = [v[torch.arange(CHECKED) % len(v)] for v in self._values(example)]
        theirs = self._of_keras(values)
        if isinstance(theirs, str):
            notes.append(f"the layers that {self.path.name} became: not compared with Keras ({theirs})")
            return module
        with torch.no_grad():
            ours = _pytree.tree_leaves(module(*values))
        if len(ours) != len(theirs):
            raise ModelError(f"{self.path}: it has {len(theirs)} outputs in Keras, {len(ours)} as a torch module.")
        check_outputs(self.path, "Keras", [str(i) for i in range(len(ours))], ours, theirs)
        return module

    def _of_keras(self, values: list[torch.Tensor]) -> list[torch.Tensor] | str:
        """What Keras gives for the file, in a child process; or why it gives nothing."""
        if importlib.util.find_spec("keras") is None:
            return "it is not installed"
        if why := unfit(self.parsed["config"]):
            return why
        with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
            for place, value in enumerate(values):
                np.save(Path(folder, f"in_{place}.npy"), value.numpy())
            asked = {"folder": folder, "inputs": len(values), "config": self.parsed["config"]}
            try:
                answer = _child.parse("slimline.sources._keras_run:run", self.path, memory=RUN_MEMORY, seconds=RUN_SECONDS, **asked)
            except ModelError as error:
                return error.message
            if "why" in answer:
                return str(answer["why"])
            return [torch.from_numpy(np.load(Path(folder, f"out_{i}.npy"), allow_pickle=False)) for i in range(answer["outputs"])]

    def _values(self, example: Samples) -> list[torch.Tensor]:
        free = [n for n in self.names if n not in example.kwargs]
        given = dict(zip(free, example.args, strict=False)) | example.kwargs
        if len(example.args) > len(free) or set(given) != set(self.names):
            raise DataError(
                f"{self.path} takes the inputs {', '.join(n for n, _, _ in self.inputs)}, the data gives {', '.join(given) or 'none'}.",
                hint="Return one tensor per input: a tuple in this order, or a dict by these names.",
            )
        for (name, shape, _), argument in zip(self.inputs, self.names, strict=True):
            tensor = given[argument]
            if shape is not None and (len(shape) != tensor.ndim or any(s is not None and s != n for s, n in list(zip(shape, tensor.shape, strict=True))[1:])):
                raise DataError(
                    f"{self.path} takes {name} as {shape}, the data gives {list(tensor.shape)}.".replace("None", "N"), hint="Return inputs as Keras takes them."
                )
        return [given[n] for n in self.names]


def open_keras(path: Path, *, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress MODEL.keras --data FILE.py``.

    Raises:
        ModelError: the file is damaged, hostile, or holds what cannot be expressed.
    """
    model = KerasModel.read(path)
    arguments = {name: argument for (name, _, _), argument in zip(model.inputs, model.names, strict=True)}
    notes: list[str] = []

    def build(example: Samples) -> nn.Module:
        return model.compared(example, notes)

    return ForeignModel.with_task(path, build, data=data, metric=metric, declared=model.declared, arguments=arguments, notes=notes)
