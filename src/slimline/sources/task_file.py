"""A task file: a user's Python file that makes the model and, if it likes, gives data, metric, loss and example.

The file is run with its own folder importable, as Python does for a script, and so are its
functions when they are called. Whatever they raise becomes one paragraph with the user's line.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError, SlimlineError, UsageError
from slimline.numerics.scores import are_probabilities, logits
from slimline.sources import validate

HoldoutSource = Literal["user", "from_search", "from_train"]
FUNCTIONS = ("data", "metric", "loss", "example", "slices")
EXAMPLES = 2  # samples of the default example; the exporter specialises a batch of one
TENTH = 10
SHOWN = 5  # names in a message
SPLIT_SEED = 0  # fixed: which samples certify must not change with --seed


@dataclass(frozen=True, eq=False)
class Origin:
    """Samples of a split: those at ``index`` of what the user gave as ``split``; ``None`` is all of them."""

    split: str
    index: torch.Tensor | None = None


@dataclass(frozen=True)
class Source:
    """One executed file. ``paths``: what must be importable while its functions run."""

    path: Path
    module: ModuleType = field(repr=False)
    paths: tuple[str, ...]

    @classmethod
    def execute(cls, path: Path, kind: type[UsageError]) -> Source:
        """Run a file.

        Raises:
            UsageError: of the given ``kind``: there is no such file, or it raises.
        """
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise kind(f"The task file {path} {what}.", hint="Give a Python file that defines model().")
        if path.suffix != ".py":
            raise kind(
                f"The task file {path} is no Python file.",
                hint="Write a FILE.py that defines model(); weights go into it, or come with --weights FILE.safetensors.",
            )
        folder = str(path.resolve().parent)
        spec = importlib.util.spec_from_file_location(f"task_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        _forget_strangers(Path(folder))
        before = list(sys.path)
        with _importable((folder,)), _explained(path, str(path), kind):
            sys.modules[module.__name__] = module  # dataclasses, pickle and the exporter look a class's module up here
            spec.loader.exec_module(module)
            added = tuple(p for p in sys.path if p not in before)
        return cls(path, module, added or (folder,))

    def function(self, name: str) -> Callable[..., Any] | None:
        """The function of that name, or ``None``.

        Raises:
            ModelError: there is something else of that name.
        """
        found = getattr(self.module, name, None)
        if found is not None and (not callable(found) or isinstance(found, ModuleType)):
            if isinstance(found, ModuleType):  # ``import data`` beside the task file is not data(split)
                return None
            raise ModelError(f"{self.path}: {name} is a {type(found).__name__}, not a function.", hint=f"Define {name} as a function.")
        return found

    def own_functions(self) -> list[str]:
        """Names of the public functions that the file itself defines."""
        return [n for n, f in vars(self.module).items() if inspect.isfunction(f) and f.__module__ == self.module.__name__ and not n.startswith("_")]

    def call(self, name: str, function: Callable[..., Any], *args: Any, kind: type[UsageError]) -> Any:
        """Call one of the file's functions; whatever it raises becomes a ``kind``."""
        shown = f"{name}({', '.join(repr(a) for a in args if isinstance(a, str)) or ('...' if args else '')})"
        with _importable(self.paths), _explained(self.path, f"{shown} in {self.path}", kind):
            return function(*args)


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
    _splits: dict[str, Samples | None] = field(default_factory=dict, repr=False)
    _origins: dict[str, Origin] = field(default_factory=dict, repr=False)
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
            samples = _made("example()", self._converted(source, "example()", source.call("example", function, kind=DataError)))
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
        """The samples of a split, where the user gave none a share of another one.

        A missing ``holdout`` is half of ``search``; a missing ``search`` is a tenth of ``train`` (or half of
        the holdout, if that is all there is); if both are missing each is a tenth of ``train``. Stratified by class, seeded.
        """
        if split not in validate.SPLITS:
            raise UsageError(f"There is no split {split!r}.", hint=f"Splits are {', '.join(validate.SPLITS)}.")
        if split not in self._splits:
            for name, origin in self._divide(split).items():
                whole = self.given(origin.split)
                self._origins[name] = origin
                self._splits[name] = whole if whole is None or origin.index is None else whole[origin.index]
        return self._splits[split]

    def origin(self, split: str) -> Origin:
        """Where the samples of a split stand in what the user gave."""
        self.data(split)
        return self._origins[split]

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
        places = range(len(samples)) if origin.index is None else origin.index.tolist()
        return {name: tuple(column[i] for i in places) for name, column in labels.items()}

    @property
    def holdout_source(self) -> HoldoutSource | None:
        """Where the certificate's samples come from; ``None`` without any data."""
        if self.given("holdout") is not None:
            return "user"
        if self.given("search") is not None:
            return "from_search"
        return "from_train" if self.given("train") is not None else None

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
        if scores is None or scores.ndim != 2 or scores.shape[1] < 2 or len(labels) != 1 or not _are_labels(labels[0]):
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
        with _importable(source.paths), _explained(source.path, f"{origin} in {source.path}", DataError):
            pairs = _pairs(returned, origin)
        parts = [_made(origin, self._converted(source, origin, inputs), _signed(self._converted(source, origin, targets))) for inputs, targets in pairs]
        samples = _concatenated(parts, origin)
        validate.check_samples(samples, split)
        return samples

    def _converted(self, source: Source, origin: str, tree: Any) -> Any:
        """Arrays and numbers become tensors on the CPU without gradients; anything else stays for the checks to name."""
        with _explained(source.path, f"{origin} in {source.path}", DataError):
            return _tensors(tree)

    def _divide(self, split: str) -> dict[str, Origin]:
        """``split``, and what its absence in the user's data divides along with it."""
        if split == "train":
            return self._divide("search") if self.given("train") is not None and self.given("search") is None else {"train": Origin("train")}
        search, holdout = self.given("search"), self.given("holdout")
        if search is not None:
            if holdout is not None:
                return {"search": Origin("search"), "holdout": Origin("holdout")}
            return _shares(search, "search", 2, ("search", "holdout"))
        train = self.given("train")
        if train is None:
            if holdout is None:
                return {"train": Origin("train"), "search": Origin("search"), "holdout": Origin("holdout")}
            return {"train": Origin("train"), **_shares(holdout, "holdout", 2, ("search", "holdout"))}
        if holdout is not None:
            return {**_shares(train, "train", TENTH, ("search",), "train"), "holdout": Origin("holdout")}
        return _shares(train, "train", TENTH, ("search", "holdout"), "train")


def _shares(samples: Samples, split: str, parts: int, names: Sequence[str], rest: str = "") -> dict[str, Origin]:
    """Disjoint shares of one ``parts``-th each, then the rest if it has a name; in the original order.

    Every ``parts``-th sample of a seeded shuffle, sorted by class where there are classes: each share
    has every class in proportion.
    """
    if len(samples) < 2 * parts:
        raise DataError(
            f"data({split!r}) has {len(samples)} samples, too few to take the missing splits from.",
            hint=f"Give at least {2 * parts}, or return search and holdout samples of their own.",
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SPLIT_SEED))
    labels = _pytree.tree_leaves(samples.targets)
    if samples.targets is not None and len(labels) == 1 and _are_labels(labels[0]):
        order = order[labels[0][order].sort(stable=True).indices]
    place = torch.arange(len(samples)) % parts
    chosen = {name: place == k for k, name in enumerate(names)} | ({rest: place >= len(names)} if rest else {})
    return {name: Origin(split, order[mask].sort().values) for name, mask in chosen.items()}


def _are_labels(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 1 and validate.is_labels(value)


def _pairs(returned: Any, origin: str) -> list[tuple[Any, Any]]:
    """``(inputs, targets)`` of every batch; one if the split came whole."""
    advice = "Return (inputs, targets), (inputs, None) without labels, None where there is no such split, or an iterable of such pairs."
    if isinstance(returned, tuple) and len(returned) == 2:
        return [(returned[0], returned[1])]
    if isinstance(returned, list) and len(returned) == 2 and all(_is_array(r) for r in returned):
        return [(returned[0], returned[1])]
    if _is_array(returned) or isinstance(returned, dict | str | bytes) or not hasattr(returned, "__iter__"):
        raise DataError(f"{origin} returned a {type(returned).__name__}.", hint=advice)
    if isinstance(getattr(returned, "sampler", None), torch.utils.data.RandomSampler):
        raise DataError(
            f"{origin} returned a {type(returned).__name__} that shuffles.",
            hint="Give it shuffle=False: batches come in a fixed order; Slimline shuffles by itself.",
        )
    batches = list(returned)
    for place, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            shown = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
            raise DataError(f"{origin} returned a {type(returned).__name__} whose item {place} is a {shown}, not a pair.", hint=advice)
    if not batches:
        raise DataError(f"{origin} returned a {type(returned).__name__} without batches.", hint="Return None where there is no such split.")
    again = next(iter(returned), None)
    if again is not None and not _equal(_tensors(tuple(batches[0])), _tensors(tuple(again))):
        raise DataError(
            f"{origin} gives another first batch when it is read a second time.",
            hint="Return batches in a fixed order and without random augmentation, or whole tensors.",
        )
    return [(batch[0], batch[1]) for batch in batches]


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__")


def _equal(one: Any, two: Any) -> bool:
    a, b = _pytree.tree_leaves(one), _pytree.tree_leaves(two)
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else bool(x == y) for x, y in zip(a, b, strict=True)
    )


def _tensors(tree: Any) -> Any:
    """A pytree with arrays, and lists of numbers, as tensors. A view that keeps a much larger storage alive is copied."""
    import numpy as np

    if isinstance(tree, torch.Tensor):
        tensor = tree.detach().cpu()
        small = tensor.layout == torch.strided and tensor.untyped_storage().nbytes() > 2 * tensor.nbytes
        return tensor.clone() if small else tensor
    if hasattr(tree, "__array__"):
        return torch.from_numpy(np.require(tree, requirements=["C", "W"]))
    if isinstance(tree, list) and tree and all(isinstance(x, int | float) for x in tree):
        return torch.as_tensor(tree)
    if isinstance(tree, dict) or (isinstance(tree, Mapping) and not hasattr(tree, "_fields")):
        return {key: _tensors(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(_tensors, tree))
    return type(tree)(map(_tensors, tree)) if isinstance(tree, tuple | list) else tree


def _signed(tree: Any) -> Any:
    """Targets whose wide unsigned integers, which torch can neither sort nor compare, are int64."""
    wide = (torch.uint16, torch.uint32, torch.uint64)
    return _pytree.tree_map(lambda t: t.long() if isinstance(t, torch.Tensor) and t.dtype in wide else t, tree)


def _made(origin: str, inputs: Any, targets: Any = None) -> Samples:
    try:
        return Samples.of(inputs, targets)
    except DataError as error:
        raise DataError(f"{origin}: {error.message}", hint=error.hint) from error


def _concatenated(parts: list[Samples], origin: str) -> Samples:
    if len(parts) == 1:
        return parts[0]
    flat = [_pytree.tree_flatten((p.args, p.kwargs, p.targets)) for p in parts]
    for place, (leaves, spec) in enumerate(flat):
        if spec != flat[0][1]:
            raise DataError(f"{origin}: batch {place} is built differently from batch 0.", hint="All batches have the same inputs and targets.")
        for one, first in zip(leaves, flat[0][0], strict=True):
            if isinstance(one, torch.Tensor) and (one.dtype != first.dtype or one.shape[1:] != first.shape[1:]):
                raise DataError(
                    f"{origin}: batch {place} has samples of {one.dtype} {list(one.shape[1:])}, batch 0 of {first.dtype} {list(first.shape[1:])}.",
                    hint="Pad or crop all samples to one shape.",
                )
    joined = [torch.cat(column) if isinstance(column[0], torch.Tensor) else column[0] for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    args, kwargs, targets = _pytree.tree_unflatten(joined, flat[0][1])
    return Samples(args, kwargs, targets)


def put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Strictly, into all parameters and buffers; of tied ones a single name is enough, as safetensors stores them."""
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    missing = [group[0] for group in names.values() if not any(n in weights for n in group)]
    unexpected = [n for n in weights if n not in own]
    shapes = [f"{n} {list(weights[n].shape)} for {list(t.shape)}" for n, t in own.items() if n in weights and weights[n].shape != t.shape]
    wrong = [
        f"{title}: {', '.join(found[:SHOWN])}{f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''}"
        for title, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if wrong:
        raise ModelError(f"The weights do not fit {type(model).__name__}; {'; '.join(wrong)}.", hint="Give the state dict of exactly this model.")
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


@contextlib.contextmanager
def _importable(paths: tuple[str, ...]) -> Iterator[None]:
    """``paths`` go first in ``sys.path`` for a while."""
    before = list(sys.path)
    sys.path[:0] = [p for p in paths if p not in before]
    try:
        yield
    finally:
        sys.path[:] = before


def _forget_strangers(folder: Path) -> None:
    """Drop modules that share a name with a file beside this one but came from the folder of another task file."""
    for name in {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is None:
            continue
        home = Path(origin).resolve().parent
        home = home.parent if Path(origin).name == "__init__.py" else home
        if home != folder and str(home) not in {str(Path(p).resolve()) for p in sys.path}:  # no longer importable: an earlier task file's
            for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[loaded]


@contextlib.contextmanager
def _explained(path: Path, what: str, kind: type[UsageError]) -> Iterator[None]:
    """Whatever a user's code raises becomes one paragraph with the file and line; our own errors pass."""
    try:
        yield
    except SlimlineError:
        raise
    except (Exception, SystemExit) as error:  # any exception can come out of a user's code; each becomes a message
        said = " ".join(str(error).split())[:500]
        raise kind(f"{what} raised {type(error).__name__}{': ' + said if said else ''} (at {_line(path, error)}).") from error


def _line(path: Path, error: BaseException) -> str:
    """``FILE:LINE`` of the innermost frame in the file's folder, else of the innermost outside Slimline and the importer."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folder, own = path.resolve().parent, Path(__file__).resolve().parent.parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<") and own not in Path(f.filename).resolve().parents]
    beside = [f for f in frames if folder in Path(f.filename).resolve().parents and "site-packages" not in f.filename]
    chosen = (beside or frames)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else str(path)
