"""Integer channel labels pushed through an exported graph: who must be pruned together with whom.

Every value carries a label tensor of its own shape. A producer (convolution, linear, embedding,
recurrent layer) gives fresh labels, one per channel; what moves values is *run* on the labels;
what combines values element by element ties their labels; a consumer ties the labels that it reads
to the positions of its weight's input dimension. Label 0 means "no channel here" (constants).
Labels along broadcast dimensions have stride 0, so they cost no memory.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from slimline.core.samples import Samples
from slimline.core.site import INPUT
from slimline.model.apply import aliases_of
from slimline.model.program import CONVOLUTIONS, module_path, operation_name

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
    }
)
ELEMENTWISE = frozenset({"floor_divide", "masked_fill", "_assert_tensor_metadata"})
MOVED = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "mT",
        "movedim",
        "swapaxes",
        "swapdims",
        "cat",
        "concat",
        "concatenate",
        "split",
        "split_with_sizes",
        "chunk",
        "tensor_split",
        "slice",
        "select",
        "narrow",
        "roll",
        "flip",
        "expand",
        "expand_as",
        "broadcast_to",
        "view_as",
        "reshape_as",
        "squeeze",
        "unsqueeze",
        "stack",
        "unbind",
        "repeat",
        "tile",
        "repeat_interleave",
        "channel_shuffle",
        "pixel_unshuffle",
    }
)
RESHAPED = frozenset({"view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as"})
SPLITTING = frozenset({"split", "split_with_sizes", "chunk", "tensor_split"})
PICKING = frozenset({"slice", "select", "narrow", *SPLITTING})
REDUCED = frozenset(
    {
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "std",
        "var",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "prod",
        "any",
        "all",
        "softmax",
        "log_softmax",
        "argmax",
        "argmin",
        "median",
        "nanmean",
        "nansum",
        "cumsum",
        "cumprod",
        "std_mean",
        "var_mean",
        "count_nonzero",
    }
)
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_", "lp_pool")
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


class Labels(fx.Interpreter):
    """One pass over the graph on real inputs (for the shapes) and labels side by side.

    Afterwards ``axes`` holds the labels along every dimension that channels reach, in graph order,
    ``edges`` the pairs of labels that are one, ``frozen`` the labels that must stay with the reason,
    ``mixed`` those that a normalisation over channels saw, ``picked`` those picked by position,
    ``factored`` label tensors ``[outer, ..., inner]`` of dimensions that the code divides.

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
        self.picked: list[torch.Tensor] = []
        self.factored: list[torch.Tensor] = []
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
                return _spread(self.axis(name, dim, result.shape[dim], "out"), dim, result.shape)
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
        shapes = _shapes(result)
        if not shapes:
            return None
        read = [self.labels[a] for a in node.all_input_nodes if self.labels.get(a) is not None]
        weights = any(isinstance(label, Read) for label in read)
        if name in MADE or (not weights and all(not isinstance(v, list) and not v.any() for v in read)):
            return _like(result, lambda shape: torch.zeros((), dtype=torch.int32).expand(shape))
        rule = RULES.get(name)
        if node.target in CONVOLUTIONS:
            rule = Labels.convolution
        if rule is not None:
            given = rule(self, node, result)
        elif name in PASSED:
            given = self.read(node.args[0])
        elif name in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            given = self.combine([self.read(a) for a in node.all_input_nodes])
        elif name in MOVED:
            given = self.move(node, name, result)
        elif name in REDUCED:
            given = self.reduce(node, result)
        elif name.startswith(POOLS):
            given = self.pool(node, name, result)
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
        return _like(result, lambda shape: self.fixed_shape(shape, reason))

    def fixed_shape(self, shape: Sequence[int], reason: str) -> torch.Tensor:
        label = self.fresh((1,))
        self.frozen.append((label, reason))
        return label.reshape([1] * len(shape)).expand(tuple(shape))

    def freeze(self, labels: torch.Tensor | None, reason: str) -> None:
        if labels is not None and labels.numel():
            self.frozen.append((distinct(core(labels)), reason))

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Element by element (of broadcastable shapes), two labels are one."""
        a, b = _broadcast(a, b)
        same = [d for d in range(a.ndim) if a.stride(d) == 0 and b.stride(d) == 0]
        for d in same:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
        differ = (a != b) & (a != 0) & (b != 0)
        if differ.any():
            pairs = torch.stack([a[differ], b[differ]]).long()
            self.edges.append(pairs if pairs.shape[1] < 4096 else torch.from_numpy(np.unique(pairs.numpy(), axis=1)))

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
            a, b = _broadcast(out, other)
            if _stretched(other, b, a):
                self.freeze(other, "it is broadcast over the channels of another value")
                if _stretched(out, a, b):
                    self.freeze(out, "it is broadcast over the channels of another value")
                out = a
            elif _stretched(out, a, b):
                self.freeze(out, "it is broadcast over the channels of another value")
                out = b
            else:
                self.tie(a, b)
                out = _either(a, b)
        return out

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

    # -- moving and reducing -----------------------------------------------------------------------------

    def move(self, node: fx.Node, name: str, result: Any) -> Any:
        if name in ("cat", "concat", "concatenate"):
            return self.concatenate(node)
        if name == "repeat_interleave" and not isinstance(_argument(node, "repeats", 1), int):
            return None
        source = self.read(node.args[0])
        if source is not None and name in RESHAPED:  # labels are laid out otherwise than the values, so that a view may need a copy
            moved = source.reshape(result.shape)
            self._note_division(node, name, source, moved)
            return moved
        args = fx.map_arg(node.args, lambda n: v if (v := self.read(n)) is not None else self.env[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: v if (v := self.read(n)) is not None else self.env[n])
        assert callable(node.target)
        moved = node.target(*args, **kwargs)
        if source is not None:
            self._note_division(node, name, source, moved)
        return list(moved) if isinstance(moved, list | tuple) else moved

    def _note_division(self, node: fx.Node, name: str, source: torch.Tensor, moved: Any) -> None:
        """Where code divides a channel dimension in equal parts, every part must keep as many."""
        if name in RESHAPED:
            for dim, start, stop in _factors(source.shape, moved.shape):
                if varies(source, dim):
                    rest = [d for d in range(moved.ndim) if not start <= d < stop]
                    self.factored.append(moved.permute(*range(start, stop), *rest).flatten(stop - start)[..., 0])
        elif name == "channel_shuffle":
            groups = int(_argument(node, "groups", 1))
            self.factored.append(self.along(source, 1).reshape(groups, -1))
        elif name in PICKING:
            dim = int(_argument(node, "dim", 2 if name in SPLITTING else 1) or 0) if name not in ("slice",) else int(_argument(node, "dim", 1) or 0)
            parts = list(moved) if isinstance(moved, list | tuple) else [moved]
            if not varies(source, dim) or (len(parts) == 1 and parts[0].shape == source.shape):
                return
            if len(parts) > 1 and len({p.shape[dim] for p in parts}) == 1:
                self.factored.append(torch.stack([core(p).movedim(dim, 0).reshape(p.shape[dim], -1)[:, 0] for p in parts]))
            else:
                self.picked.append(distinct(core(source)))

    def concatenate(self, node: fx.Node) -> torch.Tensor | None:
        nodes = node.args[0]
        assert isinstance(nodes, Sequence)
        values = [self.read(n) for n in nodes]
        if any(v is None for v in values):
            return None
        parts = [v for v in values if v is not None]
        dim = int(_argument(node, "dim", 1) or 0) % parts[0].ndim
        shape = [s if d != dim else sum(p.shape[dim] for p in parts) for d, s in enumerate(parts[0].shape)]
        for d in range(parts[0].ndim):
            if d != dim and all(p.stride(d) == 0 or p.shape[d] == 1 for p in parts):
                parts = [p.narrow(d, 0, 1) for p in parts]
        return torch.cat(parts, dim).expand(shape)

    def reduce(self, node: fx.Node, result: Any) -> Any:
        """What is reduced over is tied: a sum over groups keeps the channels within, a mean over all channels ties all."""
        labels = self.read(node.args[0])
        if labels is None:
            return None
        dims = _argument(node, "dim", None)
        chosen = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        out = labels
        for dim in {int(d) % max(labels.ndim, 1) for d in chosen}:
            small = core(out)
            self.tie(small.narrow(dim, 0, 1), small)
            out = out.narrow(dim, 0, 1)
        kept = [d for d in range(labels.ndim) if d not in {int(c) % labels.ndim for c in chosen}]

        def give(shape: tuple[int, ...]) -> torch.Tensor:
            return (
                out.expand(shape)
                if len(shape) == labels.ndim
                else out.permute(*kept, *[d for d in range(out.ndim) if d not in kept]).reshape([out.shape[d] for d in kept])
            )

        return _like(result, give)

    def pool(self, node: fx.Node, name: str, result: Any) -> Any:
        """Pooling and resizing work within channels: everything but the spatial dimensions keeps its labels."""
        labels = self.read(node.args[0])
        spatial = {"1": 1, "2": 2, "3": 3}.get(next((c for c in name if c in "123"), ""), 0) or (labels.ndim - 2 if labels is not None else 0)
        if labels is None or spatial <= 0 or labels.ndim <= spatial:
            return None
        out = labels
        for dim in range(labels.ndim - spatial, labels.ndim):
            small = core(out)
            self.tie(small.narrow(dim, 0, 1), small)
            out = out.narrow(dim, 0, 1)
        return _like(result, lambda shape: out.expand(shape))

    def pad(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels = self.read(node.args[0])
        widths: list[int] = list(node.args[1])  # type: ignore[arg-type]  # integers by the schema
        if labels is None:
            return None
        padded = [labels.ndim - 1 - i for i in range(len(widths) // 2) if (widths[2 * i], widths[2 * i + 1]) != (0, 0)]
        if any(varies(labels, d) for d in padded):
            label = self.fixed_shape((1,), "channels of fixed number are padded to it")
            return F.pad(labels, widths, value=float(label.item()))
        for d in padded:
            labels = labels.narrow(d, 0, 1)
        return labels.expand(result.shape)

    def glu(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels = self.read(node.args[0])
        if labels is None:
            return None
        a, b = labels.chunk(2, int(_argument(node, "dim", 1) if _argument(node, "dim", 1) is not None else -1))
        self.tie(a, b)
        return a

    def pixel_shuffle(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels = self.read(node.args[0])
        if labels is None or labels.ndim != 4:
            return None
        parts = self.along(labels, 1).reshape(result.shape[1], -1)
        self.tie(parts[:, :1], parts)
        return _spread(parts[:, 0], 1, result.shape)

    # -- producers and consumers ---------------------------------------------------------------------------

    def parameter(self, node: Any) -> Read | None:
        label = self.labels.get(node) if isinstance(node, fx.Node) else None
        return label if isinstance(label, Read) else None

    def vector(self, argument: Any, channels: torch.Tensor) -> None:
        """A bias, scale or statistic with one entry per channel goes along."""
        found = self.parameter(argument)
        if found is not None:
            self.tie(self.axis(found.name, 0, found.shape[0], "tied"), channels)
        elif isinstance(argument, fx.Node):
            labels = self.read(argument)
            if labels is not None:
                self.tie(labels, channels)

    def convolution(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, weight = self.read(node.args[0]), self.parameter(node.args[1])
        if labels is None or weight is None or labels.ndim != len(weight.shape):
            return None
        transposed = operation_name(node).startswith("conv_transpose")
        groups = int(_argument(node, "groups", 1) or 1)
        entering = self.along(labels, 1)
        if groups == 1:
            self.tie(self.axis(weight.name, 0 if transposed else 1, entering.numel(), "in"), entering)
            leaving = self.axis(weight.name, 1 if transposed else 0, result.shape[1], "out")
        else:
            leaving = self._grouped(weight, entering, groups, transposed, result.shape[1])
        self.vector(_argument(node, "bias", 2), leaving)
        return _spread(leaving, 1, result.shape)

    def _grouped(self, weight: Read, entering: torch.Tensor, groups: int, transposed: bool, count: int) -> torch.Tensor:
        """Depthwise: an output goes with its input. Otherwise every group keeps the channels at the same places."""
        wide_in, wide_out = entering.numel() // groups, count // groups
        if wide_in == 1:
            leaving = self.axis(weight.name, 0, count, "tied") if not transposed else entering.repeat_interleave(wide_out)
            self.tie(leaving.reshape(groups, wide_out), entering.reshape(groups, 1))
            if transposed:
                self.tie(self.axis(weight.name, 0, groups, "tied"), entering)
            return leaving
        inside = entering.reshape(groups, wide_in)
        self.tie(inside[:1], inside)
        if transposed:
            self.tie(self.axis(weight.name, 0, entering.numel(), "in"), entering)
            return self.axis(weight.name, 1, wide_out, "out").repeat(groups)
        self.tie(self.axis(weight.name, 1, wide_in, "in"), inside[0])
        leaving = self.axis(weight.name, 0, count, "out")
        self.tie(leaving.reshape(groups, -1)[:1], leaving.reshape(groups, -1))
        return leaving

    def linear(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, weight = self.read(node.args[0]), self.parameter(node.args[1])
        if labels is None or weight is None or len(weight.shape) != 2:
            return None
        self.tie(self.axis(weight.name, 1, weight.shape[1], "in"), self.along(labels, -1))
        leaving = self.axis(weight.name, 0, weight.shape[0], "out")
        self.vector(_argument(node, "bias", 2), leaving)
        return _spread(leaving, -1, result.shape)

    def matmul(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, weight = self.read(node.args[0]), self.parameter(node.args[1])
        if labels is None or weight is None or len(weight.shape) != 2:
            return None
        self.tie(self.axis(weight.name, 0, weight.shape[0], "in"), self.along(labels, -1))
        return _spread(self.axis(weight.name, 1, weight.shape[1], "out"), -1, result.shape)

    def embedding(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        weight = self.parameter(node.args[0])
        if weight is None:
            return None
        self.freeze(self.read(node.args[1]), "its values are used as indices")
        return _spread(self.axis(weight.name, 1, weight.shape[1], "out"), -1, result.shape)

    def recurrent(self, node: fx.Node, result: Any) -> Any:
        """LSTM and GRU: one hidden size for all layers and directions; gates lie one after the other."""
        labels = self.read(node.args[0])
        states = node.args[1] if isinstance(node.args[1], Sequence) else [node.args[1]]
        found = [p for n in node.args[2] if (p := self.parameter(n)) is not None]  # type: ignore[union-attr]  # a list of nodes
        hidden = next((p.shape[1] for p in found if "weight_hh" in p.name), 0)
        if labels is None or not hidden or len(found) != len(node.args[2]) or any("weight_hr" in p.name for p in found):  # type: ignore[arg-type]
            return None
        unit = self.fresh((hidden,))
        ways = 2 if node.args[7] else 1
        for p in found:
            gates = self.axis(p.name, 0, p.shape[0], "tied" if len(p.shape) == 1 or "weight_hh" in p.name else "out")
            self.tie(gates.reshape(-1, hidden), unit)
            if "weight_hh" in p.name:
                self.tie(self.axis(p.name, 1, hidden, "in"), unit)
            elif "weight_ih_l0" in p.name:
                self.tie(self.axis(p.name, 1, p.shape[1], "in"), self.along(labels, -1))
            elif "weight_ih" in p.name:
                self.tie(self.axis(p.name, 1, p.shape[1], "in").reshape(ways, hidden), unit)
        for state in states:
            if (value := self.read(state)) is not None:
                self.tie(value, unit)
        sequence = _spread(unit.repeat(ways), -1, result[0].shape)
        return [sequence, *(_spread(unit, -1, r.shape) for r in result[1:])]

    # -- normalisations --------------------------------------------------------------------------------------

    def batch_norm(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        """Batch and instance norm: channel by channel."""
        labels = self.read(node.args[0])
        if labels is None or labels.ndim < 2:
            return None
        channels = self.along(labels, 1)
        for argument in node.args[1:5]:
            self.vector(argument, channels)
        return labels

    def layer_norm(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, sizes, weight = self.read(node.args[0]), node.args[1], self.parameter(node.args[2] if len(node.args) > 2 else None)
        if labels is None or not isinstance(sizes, Sequence) or len(sizes) != 1 or weight is None:
            return None
        channels = self.along(labels, -1)
        self.vector(node.args[2], channels)
        self.vector(_argument(node, "bias", None), channels)
        self.mixed.append(distinct(channels))
        return labels

    def group_norm(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, weight = self.read(node.args[0]), self.parameter(_argument(node, "weight", 2))
        if labels is None or weight is None:
            return None
        channels = self.along(labels, 1)
        groups = channels.reshape(int(node.args[1]), -1)  # type: ignore[arg-type]  # an int by its schema
        self.tie(groups[:1], groups)
        self.vector(_argument(node, "weight", 2), channels)
        self.vector(_argument(node, "bias", 3), channels)
        self.mixed.append(distinct(channels))
        return labels

    def prelu(self, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
        labels, weight = self.read(node.args[0]), self.parameter(node.args[1])
        if labels is None or weight is None:
            return None
        if weight.shape[0] > 1:
            self.vector(node.args[1], self.along(labels, 1))
        return labels


Rule = Callable[[Labels, fx.Node, Any], Any]
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "linear": Labels.linear,
        "matmul": Labels.matmul,
        "mm": Labels.matmul,
        "embedding": Labels.embedding,
        "lstm": Labels.recurrent,
        "gru": Labels.recurrent,
        "batch_norm": Labels.batch_norm,
        "instance_norm": Labels.batch_norm,
        "layer_norm": Labels.layer_norm,
        "rms_norm": Labels.layer_norm,
        "group_norm": Labels.group_norm,
        "prelu": Labels.prelu,
        "pad": Labels.pad,
        "constant_pad_nd": Labels.pad,
        "glu": Labels.glu,
        "pixel_shuffle": Labels.pixel_shuffle,
    }
)
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "scaled_dot_product_attention": "its channels are the heads of an attention, whose number and width the model's code fixes",
        "matmul": "its channels meet in a product of two values, as in attention",
        "bmm": "its channels meet in a product of two values, as in attention",
        "einsum": "its channels meet in a product of two values",
        "layer_norm": "they are normalised without a weight, or over several dimensions",
        "group_norm": "they are normalised in groups without a weight",
        "lstm": "a recurrent layer with projections has no rule",
        "gru": "a recurrent layer with projections has no rule",
    }
)


# -- helpers on label tensors ------------------------------------------------------------------------------


def core(labels: torch.Tensor) -> torch.Tensor:
    """The labels with every broadcast dimension narrowed to one."""
    for d in range(labels.ndim):
        if labels.stride(d) == 0 and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def distinct(labels: torch.Tensor) -> torch.Tensor:
    """The labels that occur, ascending."""
    return torch.from_numpy(np.unique(labels.numpy()))


def varies(labels: torch.Tensor, dim: int) -> bool:
    """Whether the labels differ along a dimension."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    small = core(labels)
    return bool((small != small.narrow(dim, 0, 1)).any())


def _broadcast(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    return a.expand(shape), b.expand(shape)


def _stretched(before: torch.Tensor, after: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a labelled value was broadcast over a dimension along which ``other`` has channels."""
    if not before.numel() or not core(before).any():
        return False
    lead = after.ndim - before.ndim
    return any((d < lead or before.shape[d - lead] == 1) and after.shape[d] > 1 and varies(other, d) for d in range(after.ndim))


def _either(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if bool((core(a) != 0).all()):
        return a
    shape = a.shape
    for d in range(a.ndim):
        if a.stride(d) == 0 and b.stride(d) == 0:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
    return torch.where(a == 0, b, a).expand(shape)


def _spread(channels: torch.Tensor, dim: int, shape: Sequence[int]) -> torch.Tensor:
    """Labels of shape ``shape`` that vary along ``dim`` only."""
    return channels.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(tuple(shape))


def _shapes(result: Any) -> list[tuple[int, ...]]:
    values = result if isinstance(result, tuple | list) else [result]
    return [tuple(v.shape) for v in values if isinstance(v, torch.Tensor)]


def _like(result: Any, give: Callable[[tuple[int, ...]], torch.Tensor]) -> Any:
    """``give(shape)`` for every tensor of a result."""
    if isinstance(result, tuple | list):
        return [_like(r, give) for r in result]
    return give(tuple(result.shape)) if isinstance(result, torch.Tensor) else None


def _argument(node: fx.Node, name: str, position: int | None) -> Any:
    """An argument of an operation by its name in the schema."""
    if name in node.kwargs:
        return node.kwargs[name]
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        for place, argument in enumerate(schema.arguments):
            if argument.name == name:
                return node.args[place] if place < len(node.args) else argument.default_value if argument.has_default_value() else None
    return node.args[position] if position is not None and position < len(node.args) else None


def _factors(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(dim, start, stop)`` of every dimension that a reshape divides into the dimensions ``start`` to ``stop`` of its result."""
    i = j = 0
    while i < len(before) and j < len(after):
        left, right, first_i, first_j = before[i], after[j], i, j
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        if i == first_i and j > first_j:
            yield i, first_j, j + 1
        i, j = i + 1, j + 1
