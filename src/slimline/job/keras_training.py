"""The same plan inside Keras' own ``fit``: a callback."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slimline.core.contracts import Artifact
from slimline.core.edits import Mix, Prepend, Replace
from slimline.core.plan import Plan
from slimline.core.samples import Samples
from slimline.errors import ModelError, UsageError
from slimline.job.own_training import Training, as_plan, raw_of, training_of
from slimline.model.apply import named_tensors
from slimline.sources._keras_writing import places_of
from slimline.sources.keras import KerasModel

Array = np.ndarray[Any, Any]
FIRST = 2.0  # what marks the first variable: files hold zeros and ones of their own


def is_keras(model: object) -> bool:
    """Whether it is a model of Keras', which is not imported to find out."""
    return any(c.__module__.split(".")[0] == "keras" and c.__name__ == "Model" for c in type(model).__mro__)


class KerasTraining:
    """What ``prepare`` makes of a Keras model; ``callback`` is given to ``fit``.

    Before each batch the weights become what their rounding leaves of them, after it they get back what was cut off and what the batch has changed
    (straight-through); channels that go are multiplied down. ``left``: decisions that only come into force in ``export``, each with the reason.
    """

    def __init__(self, model: Any, samples: Samples, lifted: KerasModel, training: Training) -> None:
        self.model = model
        self._samples = samples
        self._training = training
        edits = training.structure
        replaced = next((e for e in edits if isinstance(e, Mix | Prepend | Replace)), None)
        if replaced is not None:
            raise UsageError(
                f"The plan puts other layers in place of the model's ({type(replaced).__name__.lower()}), which Keras cannot train as they are.",
                hint="Compress with --without low_rank,tucker,block_drop,projection,resolution,sequence_length,scale, or train the PyTorch module.",
            )
        order = _variables(model, lifted)
        starts = np.cumsum([0, *(t.numel() for t in lifted.tensors)])
        places = places_of(lifted, samples[:2].without_targets())
        self._places: dict[str, list[tuple[Any, Array, Array]]] = {}
        for name in training.touched:
            place = places.get(name)
            found: list[tuple[Any, Array, Array]] = []
            if place is not None and (place >= 0).all():
                flat = place.ravel()
                for number in np.unique(np.searchsorted(starts, flat, side="right") - 1).tolist():
                    inside = np.flatnonzero((flat >= starts[number]) & (flat < starts[number + 1]))
                    found.append((order[number], inside, flat[inside] - starts[number]))
            if found and all(variable is not None for variable, _, _ in found):
                self._places[name] = found
            else:
                training.left.append(f"{name}: Keras stores it otherwise, so it is changed at the export, not while training")
        self._roundings = {name: r for name, r in training.roundings.items() if name in self._places}
        self._pushed: dict[str, torch.Tensor] = {}

    @property
    def left(self) -> list[str]:
        return self._training.left

    @property
    def progress(self) -> float:
        """How far the ramp is, from 0 to 1."""
        return self._training.progress

    @property
    def callback(self) -> Any:
        """A ``keras.callbacks.Callback``."""
        keras = importlib.import_module("keras")
        this = self

        class Slimline(keras.callbacks.Callback):  # type: ignore[misc,name-defined]  # Keras has no annotations here
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                this._begin()

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                this._end()

        return Slimline()

    @torch.no_grad()
    def _begin(self) -> None:
        for name, rounding in self._roundings.items():
            if rounding.share:
                weight = self._pull(name)
                raw_of(self._training.module, name).copy_(weight)
                self._pushed[name] = rounding(weight)
                self._push(name, self._pushed[name])

    @torch.no_grad()
    def _end(self) -> None:
        for name in self._places:
            raw, now = raw_of(self._training.module, name), self._pull(name)
            raw.copy_(raw + now - self._pushed.pop(name) if name in self._pushed else now)
        self._training.step()
        for name in self._places:
            self._push(name, raw_of(self._training.module, name))

    def _pull(self, name: str) -> torch.Tensor:
        """As the lifted module holds it."""
        shape = raw_of(self._training.module, name).shape
        values = np.empty(shape.numel(), np.float32)
        for variable, inside, at in self._places[name]:
            values[inside] = _numpy(variable).ravel()[at]
        return torch.from_numpy(values).reshape(shape)

    def _push(self, name: str, value: torch.Tensor) -> None:
        flat = value.detach().numpy().ravel()
        for variable, inside, at in self._places[name]:
            content = _numpy(variable).copy()
            content.ravel()[at] = flat[inside]
            variable.assign(content)

    def finish(self) -> nn.Module:
        """The compressed model as a torch module, in eval mode: physically narrower, its weights in float32 as trained.

        Raises:
            ModelError: the ramp was not walked to its end.
        """
        trained = _lifted(self.model)[0].module(self._samples[:2].without_targets())
        with torch.no_grad():
            for name, value in named_tensors(trained):
                raw_of(self._training.module, name).copy_(value)
        return self._training.finish()

    def export(self, file: str | Path) -> Artifact:
        """Quantize ``finish()`` as the plan says, lower it for the target and write the artefact.

        Raises:
            SlimlineError: a decision is not legal on the trained model, or it cannot be lowered.
        """
        self.finish()
        return self._training.export(file)


def prepare_keras(
    model: Any,
    plan: Plan | str | Path,
    inputs: Any,
    *,
    steps: int,
    targets: Any,
    loss: Callable[[Any, Any], torch.Tensor | None] | None,
    ramp: tuple[float, float],
    target: str,
) -> KerasTraining:
    """``own_training.prepare`` for a Keras model; ``inputs`` are arrays or tensors as Keras takes them.

    Raises:
        UsageError: the plan is for another architecture, or holds what Keras cannot train.
        ModelError: layers that cannot be expressed.
    """
    samples = Samples.of(_tensors(inputs), None if targets is None else _tensors(targets))
    lifted, module = _lifted(model, samples)
    training = training_of(module.eval(), as_plan(plan), samples, steps=steps, loss=loss, ramp=ramp, target=target)
    return KerasTraining(model, samples, lifted, training)


def _lifted(model: Any, samples: Samples | None = None) -> tuple[KerasModel, nn.Module]:
    with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
        file = Path(folder, "model.keras")
        model.save(file)
        read = KerasModel.read(file)
    return read, read.module(samples[:2].without_targets()) if samples is not None else nn.Identity()


def _variables(model: Any, lifted: KerasModel) -> list[Any]:
    """The model's variable behind each tensor of the file: each is set to a number of its own, saved, and set back.

    Raises:
        ModelError: the file then holds something else.
    """
    weights = [v for v in model.weights if "float" in str(v.dtype)]
    kept = [_numpy(v).copy() for v in weights]
    try:
        for number, (variable, value) in enumerate(zip(weights, kept, strict=True)):
            variable.assign(np.full_like(value, FIRST + number))
        marked = _lifted(model)[0]
    finally:
        for variable, value in zip(weights, kept, strict=True):
            variable.assign(value)
    if [t.shape for t in marked.tensors] != [t.shape for t in lifted.tensors]:
        raise ModelError("The Keras model is saved differently each time.", hint="Train the PyTorch module that slimline makes of it.")
    found = []
    for tensor in marked.tensors:
        mark = float(tensor.flatten()[0]) - FIRST if tensor.is_floating_point() and tensor.numel() else -1.0
        known = mark.is_integer() and 0 <= mark < len(weights) and bool((tensor == tensor.flatten()[0]).all()) and weights[int(mark)].shape == tensor.shape
        found.append(weights[int(mark)] if known else None)
    return found


def _numpy(variable: Any) -> Array:
    keras = importlib.import_module("keras")
    array: Array = keras.ops.convert_to_numpy(variable)
    return array


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_tensors, value))
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
