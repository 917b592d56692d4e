"""A task file: a user's Python file that makes the model and, if it likes, gives data, metric, loss and example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError
from slimline.numerics.scores import are_probabilities, logits
from slimline.sources import validate
from slimline.sources.batches import made, samples_of
from slimline.sources.splits import HoldoutSource, Origin, Splits, are_labels
from slimline.sources.user_code import Source, explained, importable
from slimline.sources.weights import put_weights

FUNCTIONS = ("data", "metric", "loss", "example", "slices", "sample_weights")
EXAMPLES = 2  # samples of the default example; the exporter specialises a batch of one
SHOWN = 5  # names in a message


@dataclass(frozen=True, eq=False)
class TaskFile:
    """A model and a task from files; ``core.contracts.Task``, and the model.

    ``metric_name``: the built-in metric that was asked for, ``"metric"`` for the file's own, or
    empty: the default that fits. ``weights``: a state dict that goes into the model.
    """

    source: Source
    elsewhere: Source | None
    factory: str
    weights: Mapping[str, torch.Tensor] | None = field(repr=False)
    metric_name: str
    _given: dict[str, Samples | None] = field(default_factory=dict, repr=False)
    _model: list[nn.Module] = field(default_factory=list, repr=False)

    @classmethod
    def load(cls, spec: str, *, weights: Mapping[str, torch.Tensor] | None = None, data: Path | None = None, metric: str = "") -> TaskFile:
        """From ``FILE.py`` or ``FILE.py:function``. ``data``: another file, whose functions go first.

        Raises:
            ModelError: the file is not there or raises.
            DataError: the same of the data file.
        """
        name, _, factory = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
        source = Source.execute(Path(name), ModelError)
        elsewhere = None if data is None else Source.execute(data, DataError)
        if elsewhere is not None and not any(elsewhere.function(f) for f in FUNCTIONS):
            raise DataError(f"{data} defines none of {', '.join(FUNCTIONS)}.", hint="Define data(split), returning (inputs, targets).")
        own = any(s.function("metric") for s in (source, elsewhere) if s is not None)
        return cls(source, elsewhere, factory or "model", weights, metric or ("metric" if own else ""))

    @property
    def path(self) -> Path:
        return self.source.path

    @functools.cached_property
    def _splits(self) -> Splits:
        return Splits(self.given)

    @property
    def name(self) -> str:
        """The file's name without its suffix, and the factory's if it is another than ``model``."""
        return self.path.stem + (f"_{self.factory}" if self.factory != "model" else "")

    @property
    def has_metric(self) -> bool:
        """Whether ``metric`` is the user's own."""
        return self.metric_name == "metric"

    @property
    def has_loss(self) -> bool:
        """Whether ``loss`` is the user's own."""
        return self._function("loss") is not None

    @property
    def has_model(self) -> bool:
        """Whether the file defines the model's factory."""
        return self.source.function(self.factory) is not None

    def model(self) -> nn.Module:
        """The trained model in eval mode, made once.

        Raises:
            ModelError: there is no factory, it raises, or what it returns cannot be used; the weights do not fit.
        """
        if not self._model:
            factory = self.source.function(self.factory)
            if factory is None:
                others = [f"{self.path}:{n}" for n in self.source.own_functions() if n not in FUNCTIONS][:SHOWN]
                raise ModelError(
                    f"{self.path} defines no function {self.factory}().",
                    hint=f"Define model(), returning the trained nn.Module{', or name another factory: ' + ', '.join(others) if others else ''}.",
                )
            if isinstance(factory, nn.Module):
                raise ModelError(f"{self.path}: {self.factory} is a {type(factory).__name__}, not a function.", hint=f"Define {self.factory}(), returning it.")
            model = self.source.call(self.factory, factory, kind=ModelError)
            if self.weights is not None and isinstance(model, nn.Module):
                put_weights(model, self.weights)
            self._model.append(validate.check_model(model, f"{self.factory}() in {self.path}"))
        return self._model[0]

    def example(self) -> Samples:
        """One batch of inputs: the file's ``example()``, or the first two samples of the first split that there is.

        Raises:
            ModelError: neither example nor data.
        """
        found = self._function("example")
        if found is not None:
            source, function = found
            returned = source.call("example", function, kind=DataError)
            with explained(source.path, f"example() in {source.path}", DataError):
                samples = made("example()", returned)
            validate.check_samples(samples, f"example() in {source.path}")
            return samples
        for split in ("search", "train", "holdout"):
            samples_or_none = self.given(split)
            if samples_or_none is not None:
                return samples_or_none[:EXAMPLES].without_targets()
        raise ModelError(
            f"{self.path} gives neither data nor an example, so the model cannot be run.",
            hint="Define example(), returning one batch of inputs, or data(split).",
        )

    def given(self, split: str) -> Samples | None:
        """What the user's ``data(split)`` returned, checked; called at most once per split."""
        if split not in self._given:
            found = self._function("data")
            self._given[split] = None if found is None else self._samples(split, *found)
        return self._given[split]

    def data(self, split: str) -> Samples | None:
        """The samples of a split, where the user gave none a share of another one: see ``splits.Splits``."""
        return self._splits.data(split)

    def origin(self, split: str) -> Origin:
        """Where the samples of a split stand in what the user gave."""
        return self._splits.origin(split)

    def slices(self, split: str) -> dict[str, tuple[str, ...]]:
        """The file's own labels for the samples of a split, by way of slicing: its ``slices(split)``, asked for the split that the samples come from.

        Raises:
            DataError: it raises, or does not give one label per sample.
        """
        found = self._function("slices")
        samples = None if found is None else self.data(split)
        if found is None or samples is None:
            return {}
        source, function = found
        origin = self.origin(split)
        whole = self.given(origin.split)
        given = source.call("slices", function, origin.split, kind=DataError)
        labels = validate.check_slices(given, f"slices({origin.split!r}) in {source.path}", len(whole if whole is not None else samples))
        return {name: origin.picked(column) for name, column in labels.items()}

    @property
    def has_sample_weights(self) -> bool:
        """Whether the file weighs its samples."""
        return self._function("sample_weights") is not None

    def sample_weights(self, split: str) -> torch.Tensor | None:
        """How often the device sees each sample of a split ``[N]``, in proportion: the file's ``sample_weights(split)``, asked for the split that the samples come from.

        Raises:
            DataError: it raises, or does not give one number per sample, none below zero.
        """
        found = self._function("sample_weights")
        samples = None if found is None else self.data(split)
        if found is None or samples is None:
            return None
        source, function = found
        origin = self.origin(split)
        whole = self.given(origin.split)
        given = source.call("sample_weights", function, origin.split, kind=DataError)
        weights = validate.check_sample_weights(given, f"sample_weights({origin.split!r}) in {source.path}", len(whole if whole is not None else samples))
        return weights if origin.index is None else weights[origin.index]

    @property
    def holdout_source(self) -> HoldoutSource | None:
        """Where the certificate's samples come from; ``None`` without any data."""
        return self._splits.source

    def metric(self, outputs: Any, targets: Any) -> float | torch.Tensor:
        """The file's own metric.

        Raises:
            DataError: it defines none (``has_metric`` tells), or it raises.
        """
        found = self._function("metric")
        if found is None:
            raise DataError(f"{self.path} defines no metric.", hint="Define metric(outputs, targets), or give --metric NAME.")
        source, function = found
        value: float | torch.Tensor = source.call("metric", function, outputs, targets, kind=DataError)
        return value

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        """The file's own loss, else cross-entropy for class scores ``[N, C]`` against labels ``[N]``, else ``None``."""
        found = self._function("loss")
        if found is not None:
            source, function = found
            value = source.call("loss", function, outputs, targets, kind=DataError)
            if not isinstance(value, torch.Tensor) or value.ndim != 0:
                shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
                raise DataError(f"loss(outputs, targets) in {source.path} returned {shown}.", hint="Return a scalar tensor.")
            return value
        scores = next((t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()), None)
        labels = _pytree.tree_leaves(targets)
        if scores is None or scores.ndim != 2 or scores.shape[1] < 2 or len(labels) != 1 or not are_labels(labels[0]):
            return None
        return nn.functional.cross_entropy(logits(scores, are_probabilities(scores)), labels[0].long())

    def _function(self, name: str) -> tuple[Source, Callable[..., Any]] | None:
        for source in (self.elsewhere, self.source):
            function = source.function(name) if source is not None else None
            if source is not None and function is not None:
                return source, function
        return None

    def _samples(self, split: str, source: Source, function: Callable[..., Any]) -> Samples | None:
        origin = f"data({split!r})"
        returned = source.call("data", function, split, kind=DataError)
        if returned is None:
            return None
        with importable(source.paths), explained(source.path, f"{origin} in {source.path}", DataError):
            samples = samples_of(returned, origin)
        validate.check_samples(samples, split)
        return samples
