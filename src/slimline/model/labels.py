"""Integer channel labels pushed through an exported graph: who must be pruned together with whom.

Every value carries a label tensor of its own shape. A producer (convolution, linear, embedding,
recurrent layer) gives fresh labels, one per channel; what moves values is *run* on the labels;
what combines values element by element ties their labels; a consumer ties the labels that it reads
to the positions of its weight's input dimension. Label 0 means "no channel here" (constants).
The rules of layers are in ``label_layers``, those of what moves values in ``label_moves``.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn

from slimline.core.samples import Samples
from slimline.core.site import INPUT
from slimline.model.apply import aliases_of
from slimline.model.label_layers import LAYERS, REASONS, convolution
from slimline.model.label_moves import MOVED, MOVES, POOLS, REDUCED, move, pool, reduce
from slimline.model.label_tensors import broadcast, core, distinct, either, like, rows_of, shapes_of, spread, stretched
from slimline.model.operations import CONVOLUTIONS, module_path, operation_name

Role = Literal["out", "in", "tied"]
MOST_ELEMENTS = 2_000_000  # of a parameter that is used outside a layer: one label each

# The value of the first argument, element by element, whatever the others are.
PASSED = frozenset(
    {
        "dropout",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "to",
        "_to_copy",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "type_as",
        "lift_fresh_copy",
        "hardswish",
        "rrelu",
        "zero",
    }
)
ELEMENTWISE = frozenset({"floor_divide", "masked_fill", "_assert_tensor_metadata"})
MADE = frozenset(
    {
        "zeros",
        "ones",
        "full",
        "arange",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
        "scalar_tensor",
        "eye",
        "linspace",
    }
)


@dataclass(frozen=True)
class Axis:
    """A dimension of a parameter or buffer."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class Read:
    """A parameter or buffer where it has not met an operation yet."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Shared:
    """A layer whose weights go with the channels, and which different channels reach in different places.

    ``rows`` ``[places, channels]``; ``vectors`` the labels of its weights.
    """

    rows: torch.Tensor
    vectors: tuple[torch.Tensor, ...]


class Labels(fx.Interpreter):
    """One pass over the graph on real inputs (for the shapes) and labels side by side.

    Afterwards ``axes`` holds the labels along every dimension that channels reach, in graph order,
    ``edges`` the pairs of labels that are one, ``frozen`` the labels that must stay with the reason,
    ``mixed`` those that a normalisation over channels saw together, ``picked`` labels with the dimension along which the code picks by position (of no
    consequence if they turn out to be the same all along it, as a class token's and an image's channels do), ``summaries`` the label of a sum or mean over
    channels with theirs (of no consequence if it only meets its like, and values that it is broadcast over, as in a norm written out),
    ``factored`` label tensors ``[outer, ..., inner]`` of dimensions that the code divides, ``shared`` what a layer with a weight for each channel
    has in different places, as the heads that it serves.

    ``features``: name of an input (``#input.0``) -> its dimension whose positions count as channels; all other inputs must stay as they are.
    """

    def __init__(self, graph: fx.GraphModule, model: nn.Module, example: Samples, features: Mapping[str, int] = MappingProxyType({})) -> None:
        super().__init__(graph)
        self.features = features
        self.first = {name: names[0] for name, names in aliases_of(model).items()}
        self.count = 1
        self.edges: list[torch.Tensor] = []
        self.frozen: list[tuple[torch.Tensor, str]] = []
        self.mixed: list[torch.Tensor] = []
        self.picked: list[tuple[torch.Tensor, int]] = []
        self.factored: list[torch.Tensor] = []
        self.shared: list[Shared] = []
        self.summaries: dict[int, torch.Tensor] = {}
        self.axes: dict[Axis, torch.Tensor] = {}
        self.roles: dict[Axis, set[Role]] = {}  # a tied weight's dimension can be made by one layer and read by another
        self.elements: dict[str, torch.Tensor] = {}
        self.labels: dict[fx.Node, Any] = {}
        positional = iter(example.args)
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        self.numbers = {n: f"{INPUT}{i}" for i, n in enumerate(placeholders)}
        self.inputs = {n.target: v for n, v in ((n, next(positional, example.kwargs.get(str(n.target)))) for n in placeholders)}
        with torch.no_grad():
            self.run(enable_io_processing=False)

    # -- interpreter hooks ---------------------------------------------------------------------------

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.inputs[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return None  # guards of the exporter

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.labels[n] = self._label(n, result)
        for dead in self.user_to_last_uses.get(n, ()):
            self.labels.pop(dead, None)
        return result

    def _label(self, node: fx.Node, result: Any) -> Any:
        if node.op == "placeholder":
            name = self.numbers[node]
            if name in self.features:
                dim = self.features[name]
                return spread(self.axis(name, dim, result.shape[dim], "out"), dim, result.shape)
            return self.fixed(result, "it is combined with an input of the model")
        if node.op == "get_attr":
            return Read(self.first.get(str(node.target), ""), tuple(result.shape)) if isinstance(result, torch.Tensor) else None
        if node.op == "output":
            for source in node.all_input_nodes:
                self.freeze(self.read(source), "its channels are an output of the model")
            return None
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            return self.labels[node.args[0]][node.args[1]] if isinstance(self.labels[node.args[0]], list) else None  # type: ignore[index]
        return self._operation(node, operation_name(node), result)

    def _operation(self, node: fx.Node, name: str, result: Any) -> Any:
        shapes = shapes_of(result)
        if not shapes:
            return None
        read = [self.labels[a] for a in node.all_input_nodes if self.labels.get(a) is not None]
        weights = any(isinstance(label, Read) for label in read)
        if name in MADE or (not weights and all(not isinstance(v, list) and not v.any() for v in read)):
            return like(result, lambda shape: torch.zeros((), dtype=torch.int32).expand(shape))
        rule = LAYERS.get(name) or MOVES.get(name)
        if node.target in CONVOLUTIONS:
            rule = convolution
        if rule is not None:
            given = rule(self, node, result)
        elif name in PASSED:
            given = self.read(node.args[0])
        elif name in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            given = served if (served := self.serve(node)) is not None else self.combine([self.read(a) for a in node.all_input_nodes])
        elif name in MOVED:
            given = move(self, node, name, result)
        elif name in REDUCED:
            given = reduce(self, node, result)
        elif name.startswith(POOLS):
            given = pool(self, node, name, result)
        else:
            given = None
        return self.unknown(node, name, result) if given is None else given

    # -- labels ----------------------------------------------------------------------------------------

    def fresh(self, shape: tuple[int, ...]) -> torch.Tensor:
        start, self.count = self.count, self.count + math.prod(shape)
        return torch.arange(start, self.count, dtype=torch.int32).reshape(shape)

    def axis(self, name: str, dim: int, size: int, role: Role) -> torch.Tensor:
        """The labels along one dimension of a parameter; the same ones at every use of it."""
        key = Axis(name, dim)
        if key not in self.axes:
            self.axes[key] = self.fresh((size,))
            if not name:
                self.freeze(self.axes[key], "its weight is a constant that the model does not name")
        self.roles.setdefault(key, set()).add(role)
        return self.axes[key]

    def read(self, node: Any) -> torch.Tensor | None:
        """The labels of an argument; a bare parameter gets its own, a constant has none."""
        label = self.labels.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(label, Read):
            return label if isinstance(label, torch.Tensor) else None
        wide = [d for d, size in enumerate(label.shape) if size > 1]
        if not wide:
            return torch.zeros((), dtype=torch.int32).expand(label.shape)
        if not label.name or math.prod(label.shape) > MOST_ELEMENTS:
            return self.fixed_shape(label.shape, "it is combined with a constant of fixed size")
        if len(wide) == 1:
            return self.axis(label.name, wide[0], label.shape[wide[0]], "tied").reshape(label.shape)
        if label.name not in self.elements:
            self.elements[label.name] = self.fresh(label.shape)
        return self.elements[label.name]

    def fixed(self, result: Any, reason: str) -> Any:
        """Labels for a result whose channels must all stay."""
        return like(result, lambda shape: self.fixed_shape(shape, reason))

    def fixed_shape(self, shape: Sequence[int], reason: str) -> torch.Tensor:
        label = self.fresh((1,))
        self.frozen.append((label, reason))
        return label.reshape([1] * len(shape)).expand(tuple(shape))

    def freeze(self, labels: torch.Tensor | None, reason: str) -> None:
        if labels is not None and labels.numel():
            self.frozen.append((distinct(core(labels)), reason))

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Element by element (of broadcastable shapes), two labels are one."""
        a, b = broadcast(a, b)
        same = [d for d in range(a.ndim) if a.stride(d) == 0 and b.stride(d) == 0]
        for d in same:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
        differ = (a != b) & (a != 0) & (b != 0)
        if differ.any():
            left, right = a[differ].long(), b[differ].long()
            if len(left) >= 4096:  # as one number each, which sort in a tenth of the time that pairs take
                base = int(right.max()) + 1
                numbers = torch.from_numpy(np.unique((left * base + right).numpy()))
                left, right = numbers // base, numbers % base
            self.edges.append(torch.stack([left, right]))

    def along(self, labels: torch.Tensor, dim: int) -> torch.Tensor:
        """The labels along ``dim`` as a vector; those at other positions of the same index are tied to it."""
        small = core(labels)
        size = labels.shape[dim]
        flat = small.movedim(dim, 0).reshape(small.shape[dim], -1)
        self.tie(flat[:, :1], flat)
        return flat[:, 0].expand(size) if flat.shape[0] != size else flat[:, 0]

    def combine(self, values: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """Element-wise combination with broadcasting. What is broadcast over channels cannot follow them: it stays."""
        given = [v for v in values if v is not None]
        if not given:
            return None
        out = given[0]
        for other in given[1:]:
            a, b = broadcast(out, other)
            if stretched(other, b, a):
                self.stretch(other)
                if stretched(out, a, b):
                    self.stretch(out)
                out = a
            elif stretched(out, a, b):
                self.stretch(out)
                out = b
            else:
                self.tie(a, b)
                out = either(a, b)
        return out

    def stretch(self, labels: torch.Tensor) -> None:
        """A value is broadcast over channels: one label cannot follow them, unless it is a summary of all."""
        found = distinct(core(labels)).tolist()
        self.mixed += [self.summaries[label] for label in found if label in self.summaries]
        self.freeze(torch.tensor([label for label in found if label not in self.summaries]), "it is broadcast over the channels of another value")

    def summary(self, rows: torch.Tensor) -> torch.Tensor:
        """A label for each of ``rows`` ``[places, channels]``: that of one number made of all these channels."""
        made = self.fresh((len(rows),))
        for label, row in zip(made.tolist(), rows, strict=True):
            found = distinct(row)
            self.summaries[label] = found[found != 0]
        return made

    def unknown(self, node: fx.Node, name: str, result: Any) -> Any:
        where = module_path(node)
        reason = REASONS.get(name, f"its channels reach {name}{f' in {where}' if where else ''}, which has no rule for channels")
        for source in node.all_input_nodes:
            label = self.labels.get(source)
            if isinstance(label, Read) and label.name:
                for dim, size in enumerate(label.shape):
                    self.freeze(self.axis(label.name, dim, size, "tied"), reason)
            else:
                for value in label if isinstance(label, list) else [label]:
                    self.freeze(value if isinstance(value, torch.Tensor) else None, reason)
        return self.fixed(result, reason)

    def parameter(self, node: Any) -> Read | None:
        label = self.labels.get(node) if isinstance(node, fx.Node) else None
        return label if isinstance(label, Read) else None

    def vector(self, argument: Any, channels: torch.Tensor) -> None:
        """A bias, scale or statistic with one entry per channel goes along."""
        if (found := self._vector(argument)) is not None:
            self.tie(found, channels)

    def _vector(self, argument: Any) -> torch.Tensor | None:
        found = self.parameter(argument)
        return self.read(argument) if found is None else self.axis(found.name, 0, found.shape[0], "tied")

    def vectors(self, arguments: Sequence[Any], labels: torch.Tensor, dim: int, *, mixes: bool = False) -> None:
        """The same for the channels along ``dim``, whichever they are in other places. ``mixes``: they are normalised together."""
        rows = rows_of(labels, dim)
        found = tuple(v for a in arguments if (v := self._vector(a)) is not None)
        if len(rows) > 1:
            self.shared.append(Shared(rows, found))
        else:
            for vector in found:
                self.tie(vector, rows[0])
        if mixes:
            self.mixed += [distinct(row) for row in rows]

    def serve(self, node: fx.Node) -> torch.Tensor | None:
        """What a vector of the model meets, if it meets different channels in different places: a norm's scale, written out, that serves all heads."""
        if len(node.all_input_nodes) != 2:
            return None
        for vector, other in itertools.permutations(node.all_input_nodes):
            own, met = self.parameter(vector), self.read(other)
            if own is None or self.parameter(other) is not None or met is None:
                continue
            wide = [d - len(own.shape) for d, size in enumerate(own.shape) if size > 1]
            fits = len(wide) == 1 and bool(own.name) and -wide[0] <= met.ndim and met.shape[wide[0]] == own.shape[wide[0]] and bool((core(met) != 0).all())
            if fits and len(rows_of(met, wide[0])) > 1:
                labels = self.read(vector)
                assert labels is not None
                self.shared.append(Shared(rows_of(met, wide[0]), (labels.reshape(-1),)))
                return met
        return None

    def table(self, labels: torch.Tensor) -> bool:
        """Whether they are those of one parameter that holds a value of its own for every place."""
        low, high = (int(v) for v in core(labels).aminmax()) if labels.numel() else (0, 0)
        return any(int(t.flatten()[0]) <= low and high <= int(t.flatten()[-1]) for t in self.elements.values())

    def even(self, labels: torch.Tensor, dims: Iterable[int]) -> torch.Tensor:
        """The labels with these dimensions narrowed to one: what lies along them is tied."""
        for dim in dims:
            small = core(labels)
            self.tie(small.narrow(dim, 0, 1), small)
            labels = labels.narrow(dim, 0, 1)
        return labels
