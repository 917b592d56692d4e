"""Builds an ``nn.Module`` operation by operation, each one computed at once on two example batches.

The two batches differ in their size only, so what differs between their shapes is the batch. What
is built is an ``fx.GraphModule``: layers are real torch modules, everything else is torch functions.
"""

from __future__ import annotations

import operator
import re
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from slimline.errors import ModelError

Pair = tuple[Any, Any]
MOST_BYTES = 2**31  # of one result, for the few samples of an example
LEAST_CONSTANTS = 2**28  # what a file may compute out of nothing, or ...
LEAST_VALUES = 2**31  # ... hold at once while it is computed, unless its own tensors or inputs are large:
PER_STORED = 4
PER_INPUT = 1000  # an image of three channels becomes hundreds of full size
LEAST_SECONDS = 10  # of processor time, and one more ...
BYTES_PER_SECOND = 1_000_000  # ... for so much of weights and inputs


class Unliftable(ModelError):
    """One operation that cannot be expressed; the message says why."""


class TooMuch(Unliftable):
    """It would take more time or memory than a file of its size may."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor that depends on the inputs: its node, and its value for both batches."""

    node: fx.Node
    pair: Pair

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pair[0].shape)

    @property
    def ndim(self) -> int:
        return int(self.pair[0].ndim)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.pair[0].dtype
        return found


@dataclass(frozen=True, eq=False)
class Size:
    """A number that follows a tensor's shape: the batch, or a width that pruning may change."""

    node: fx.Node
    pair: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Sizes:
    """A small integer tensor made of shapes: ``items`` are numbers and ``Size``; a scalar if not ``vector``."""

    items: tuple[int | Size, ...]
    vector: bool = True

    @property
    def constant(self) -> bool:
        """Whether no item changes with the batch."""
        return all(isinstance(i, int) or i.pair[0] == i.pair[1] for i in self.items)

    def tensor(self) -> torch.Tensor:
        """Its value, for those that do not change with the batch."""
        values = torch.tensor([number(i) for i in self.items], dtype=torch.int64)
        return values if self.vector else values[0]


Value = torch.Tensor | Traced | Sizes


def number(item: int | Size, which: int = 0) -> int:
    return item.pair[which] if isinstance(item, Size) else int(item)


class Lift:
    """The graph under construction. ``fixed_batch``: the file was made for one batch size, which its numbers contain.

    ``stored``: bytes of its own tensors. They and the inputs buy what computing it may take: a small file is not one that needs gigabytes or minutes.
    """

    def __init__(self, *, fixed_batch: bool = False, stored: int = 0) -> None:
        self.fixed_batch = fixed_batch
        self.stored, self.given = stored, 0
        self.constants, self.values = 0, 0  # bytes that are held
        self.started = time.thread_time()
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.shared: dict[Any, Any] = {}
        self._buffers: dict[int, str] = {}
        self.kept: list[torch.Tensor] = []  # stored tensors are told apart by their ids, so they must live

    def input(self, name: str, pair: Pair) -> Traced:
        self.given += _bytes(pair)
        return Traced(self.graph.placeholder(name), pair)

    def finish(self, outputs: Sequence[Value]) -> fx.GraphModule:
        """The module; one output comes as a tensor, several as a tuple."""
        nodes = [self._loaded(v)[0] for v in outputs]
        self.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
        module = fx.GraphModule(self.root, self.graph, "Lifted")
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        return module.eval()

    # -- emitting ----------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The result of a torch function; computed at once if nothing in it depends on the inputs."""
        return self._emit(lambda a, k: self.graph.call_function(function, a, k), function, args, kwargs)

    def method(self, name: str, value: Value, *args: Any) -> Any:
        """The result of a tensor's method."""
        return self._emit(lambda a, k: self.graph.call_method(name, a, k), lambda v, *rest: getattr(v, name)(*rest), (value, *args), {})

    def module(self, path: str, module: nn.Module, *args: Any) -> Any:
        """The result of a layer, which becomes a submodule of that name."""
        module.eval()
        path = self._place(path, module)
        return self._emit(lambda a, k: self.graph.call_module(path, a, k), module, args, {}, always=True)

    def _emit(self, make: Callable[[Any, Any], fx.Node], function: Callable[..., Any], args: Any, kwargs: Any, always: bool = False) -> Any:
        leaves, spec = _pytree.tree_flatten((args, kwargs))
        self._check_time()
        with torch.no_grad():
            if not always and not any(isinstance(v, Traced | Size) or (isinstance(v, Sizes) and not v.constant) for v in leaves):
                plain = [v.tensor() if isinstance(v, Sizes) else v for v in leaves]
                self._check_room(_size(function, plain, spec), constant=True)
                a, k = _pytree.tree_unflatten(plain, spec)
                result = function(*a, **k)
                self.constants += _bytes(result)
                return result
            loaded = [self._loaded(v) for v in leaves]
            results = []
            for which in (0, 1):
                values = [value[which] for _, value in loaded]
                self._check_room(_size(function, values, spec))
                a, k = _pytree.tree_unflatten(values, spec)
                results.append(function(*a, **k))
                self._hold(results[-1])
        a, k = _pytree.tree_unflatten([node for node, _ in loaded], spec)
        return self._wrapped(make(a, k), results[0], results[1])

    def _check_time(self) -> None:
        allowed = LEAST_SECONDS + (self.stored + self.given) // BYTES_PER_SECOND
        if time.thread_time() - self.started > allowed:
            raise TooMuch(f"computing the file for a few samples takes more than {allowed} s, which is much for its size")

    def _check_room(self, nbytes: int, *, constant: bool = False) -> None:
        """For a result of ``nbytes`` beside those that are held.

        Raises:
            TooMuch: there is none.
        """
        if nbytes > MOST_BYTES:
            raise TooMuch(f"its result would take {nbytes:,} bytes for a few samples")
        held = (self.constants if constant else self.values) + nbytes
        room = max(LEAST_CONSTANTS, PER_STORED * self.stored) if constant else max(LEAST_VALUES, PER_STORED * self.stored, PER_INPUT * self.given)
        if held > room:
            what = "what it computes from constants" if constant else "its values for a few samples"
            raise TooMuch(f"{what} would take {held:,} bytes in all, of {room:,} that a file of its size may")

    def _hold(self, result: Any) -> None:
        """Count a result's bytes for as long as it lives."""
        for one in _pytree.tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.values += one.nbytes
                weakref.finalize(one, self._release, one.nbytes).atexit = False

    def _release(self, nbytes: int) -> None:
        self.values -= nbytes

    def _wrapped(self, node: fx.Node, one: Any, two: Any) -> Any:
        if isinstance(one, torch.Tensor):
            return Traced(node, (one, two))
        if isinstance(one, bool | float) or one is None:
            raise Unliftable("it gives a value that is no tensor")
        if isinstance(one, int):
            return Size(node, (one, two))
        return [self._wrapped(self.graph.call_function(operator.getitem, (node, i)), a, b) for i, (a, b) in enumerate(zip(one, two, strict=True))]

    def _loaded(self, value: Any) -> tuple[Any, Pair]:
        """What goes into the graph for an argument, and its two values."""
        if isinstance(value, Traced | Size):
            return value.node, value.pair
        if isinstance(value, Sizes):
            value = self.tensor(value)
            if isinstance(value, Traced):
                return value.node, value.pair
        if isinstance(value, torch.Tensor):
            return self.graph.get_attr(self._buffer(value)), (value, value)
        return value, (value, value)

    def tensor(self, value: Value) -> torch.Tensor | Traced:
        """A value as a tensor: sizes that change with the batch are stacked."""
        if not isinstance(value, Sizes):
            return value
        if value.constant:
            return value.tensor()
        parts = [self.call(torch.scalar_tensor, i, dtype=torch.int64) for i in value.items]
        stacked: Traced = self.call(torch.stack, parts) if value.vector else parts[0]
        return stacked

    def constant(self, value: Value | None, what: str) -> torch.Tensor:
        """A value that does not depend on the inputs.

        Raises:
            Unliftable: it does.
        """
        if isinstance(value, Sizes) and value.constant:
            return value.tensor()
        if not isinstance(value, torch.Tensor):
            raise Unliftable(f"its {what} is computed from the inputs")
        return value

    def size(self, value: Traced, dim: int) -> int | Size:
        """A dimension of a tensor, as a number that follows it."""
        found: int | Size = self.method("size", value, dim)
        return found

    # -- names ---------------------------------------------------------------------------------------

    def parameter(self, key: Any, make: Callable[[], torch.Tensor]) -> nn.Parameter:
        """One parameter for one stored tensor in one form: what the file ties stays tied."""
        if key not in self.shared:
            self.shared[key] = nn.Parameter(make().detach().clone().float().contiguous())
        found: nn.Parameter = self.shared[key]
        return found

    def _buffer(self, value: torch.Tensor) -> str:
        if id(value) not in self._buffers:
            name = f"constant_{len(self._buffers)}"
            self.root.register_buffer(name, value.detach().clone())
            self._buffers[id(value)] = name
            self.kept.append(value)
        return self._buffers[id(value)]

    def _place(self, path: str, module: nn.Module) -> str:
        wanted = path = module_path(path)
        for again in range(1, 10**6):
            owner, _, leaf = path.rpartition(".")
            parent: Any = self.root
            for part in filter(None, owner.split(".")):
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            if not hasattr(parent, leaf) and type(parent) is nn.Module:
                parent.add_module(leaf, module)
                return path
            path = f"{wanted}_{again}"
            if type(parent) is not nn.Module:  # a layer lies where a folder is wanted
                path = wanted = path.replace(".", "_")
        raise AssertionError("unreachable")


def _size(function: Callable[..., Any], values: Sequence[Any], spec: Any) -> int:
    """Bytes of a result, from its shape and without computing it: a file of a few bytes can ask for any amount of memory. 0 where shapes depend on values."""
    bare = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in values]
    a, k = _pytree.tree_unflatten(bare, spec)
    try:
        with torch.device("meta"):
            if isinstance(function, nn.Module):
                state = {n: t.to("meta") for n, t in (*function.named_parameters(), *function.named_buffers())}
                return _bytes(torch.func.functional_call(function, state, a, k))
            return _bytes(function(*a, **k))
    except Exception:  # noqa: BLE001 - shapes that depend on values have no such result; anything else is met again when it is computed
        return 0


def _bytes(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _pytree.tree_leaves(tree) if isinstance(t, torch.Tensor))


def module_path(name: str) -> str:
    """A dotted path of identifiers from whatever a file calls its layers."""
    parts = [re.sub(r"\W", "_", p, flags=re.ASCII) for p in re.split(r"[./]", name) if p]
    return ".".join(p or "_" for p in parts) or "layer"


def identifier(name: str, taken: set[str]) -> str:
    """A Python name for an input, and its registration in ``taken``."""
    import keyword

    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "input"  # it goes into generated code
    plain = f"input_{plain}" if plain[0].isdigit() or keyword.iskeyword(plain) else plain
    unique, again = plain, 1
    while unique in taken:
        again += 1
        unique = f"{plain}_{again}"
    taken.add(unique)
    return unique
