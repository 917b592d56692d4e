"""Which channels must be pruned together, found by pushing labels through the graph.

Every value carries an integer label per element that says which channel it belongs to. Operations that
only move values are run on the labels; element-wise operations tie the labels that meet; layers give
their outputs fresh labels and note the labels of their inputs; whatever is not understood freezes
what enters it. At the end the connected labels are channels, and the channels that the same layers
make are a site. There are no rules per model family.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.edits import Keep
from slimline.core.samples import Samples
from slimline.core.site import Member, Refusal, Site
from slimline.errors import SlimlineError, UnsupportedSite
from slimline.model.apply import apply_structure
from slimline.model.program import CONVOLUTIONS, RECURRENT, Program, groups_of, module_path, operation_name

aten = torch.ops.aten
FREE, FROZEN = -1, 0

MOVES = frozenset({
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.cat.default, aten.stack.default,
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.roll.default, aten.flip.default, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.movedim.int, aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.narrow.default, aten.repeat.default,
})
UNCHANGED = frozenset({
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.alpha_dropout.default,
    aten.lift_fresh_copy.default, aten.cumsum.default,
})
SPATIAL = frozenset({
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.vec, aten.upsample_nearest1d.vec, aten.pad.default,
    aten.constant_pad_nd.default, aten.reflection_pad2d.default, aten.replication_pad2d.default,
})
REDUCTIONS = frozenset({aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.max.dim, aten.norm.ScalarOpt_dim, aten.linalg_vector_norm.default, aten.std.correction, aten.var.correction, aten.logsumexp.default})
NORMALISED = frozenset({aten.softmax.int, aten.log_softmax.int, aten._softmax.default})
CREATORS = frozenset({aten.zeros.default, aten.ones.default, aten.full.default, aten.arange.default, aten.arange.start, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.scalar_tensor.default, aten.empty.memory_format, aten.new_zeros.default, aten.new_ones.default})


def find_channel_sites(model: nn.Module, example: Samples) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """Every set of channels that can be pruned, and what cannot with the reason.

    Each site was tried: all channels but one were kept on a copy, and the model ran with the same output shapes.

    Raises:
        ModelError: the model cannot be exported.
    """
    program = Program.export(model, example, fold=False)
    labels = Labels(program)
    labels.push()
    sites, refusals = labels.sites()
    names = dict.fromkeys(n for n, _ in [*model.named_parameters(), *model.named_buffers()])
    good: list[Site] = []
    for site in sites:
        reason = _trial(model, example, site, names)
        if reason:
            refusals.append(Refusal(where=site.id, reason=reason))
        else:
            good.append(site)
    return tuple(good), tuple(refusals)


def _trial(model: nn.Module, example: Samples, site: Site, names: dict[str, None]) -> str:
    """Why the site cannot be pruned, found by doing it; empty when it can."""
    missing = [m.parameter for m in site.members if m.parameter not in names]
    if missing:
        return f"the export renamed {missing[0]}"
    keep = tuple(range(1, site.shape[0]))
    two = example[:2]
    try:
        pruned = apply_structure(model, [Keep(m, keep) for m in site.members])
        with torch.no_grad():
            before = [t.shape for t in _pytree.tree_leaves(model(*two.args, **two.kwargs)) if isinstance(t, torch.Tensor)]
            after = [t.shape for t in _pytree.tree_leaves(pruned(*two.args, **two.kwargs)) if isinstance(t, torch.Tensor)]
    except SlimlineError as error:
        return error.message
    except Exception as error:  # whatever the user's code raises with one channel less is the reason
        return f"with one channel less the model says: {str(error).strip().splitlines()[0][:160]}"
    return "" if before == after else "the shape of the outputs would change"


@dataclass
class Labels:
    """Labels of one graph while they are pushed through it."""

    program: Program
    count: int = 1  # label 0 is FROZEN
    pairs: list[np.ndarray[Any, Any]] = field(default_factory=list)
    vectors: dict[tuple[str, int], np.ndarray[Any, Any]] = field(default_factory=dict)
    producers: list[tuple[str, np.ndarray[Any, Any]]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def push(self) -> None:
        """Once through the graph."""
        run = self.program.run(self.program.example, keep=True)
        actual = run.values
        for node in self.program.graph.nodes:
            value = actual.get(node.name)
            if node.op == "placeholder":
                self.values[node.name] = torch.zeros(value.shape, dtype=torch.int64)  # type: ignore[union-attr]
            elif node.op == "get_attr":
                self.values[node.name] = _Parameter(str(node.target))
            elif node.op == "call_function":
                self.values[node.name] = self._call(node, actual)
            elif node.op == "output":
                for leaf in _pytree.tree_leaves(node.args):
                    if isinstance(leaf, fx.Node) and isinstance(self.values.get(leaf.name), torch.Tensor):
                        self.freeze(self.values[leaf.name], "an output of the model")

    # -- what happens to labels ------------------------------------------------------------------

    def fresh(self, size: int) -> torch.Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)

    def tie(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """The channels of equal positions are one; ``FREE`` ties nothing."""
        a, b = torch.broadcast_tensors(a, b)
        both = (a != b) & (a != FREE) & (b != FREE)
        if both.any():
            self.pairs.append(np.unique(torch.stack((a[both], b[both]), 1).numpy(), axis=0))

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        ids = torch.unique(labels)
        for i in ids[ids > FROZEN].tolist():
            self.reasons.setdefault(i, reason)
        self.tie(ids[ids > FROZEN], torch.tensor(FROZEN))

    def along(self, labels: torch.Tensor, dim: int) -> torch.Tensor:
        """Labels along one dimension, ``[size]``; what differs elsewhere is tied."""
        moved = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)
        self.tie(moved, moved[:, :1])
        return moved[:, 0].clone()

    def consume(self, parameter: str, dim: int, labels: torch.Tensor) -> None:
        """A dimension of a parameter has these channels."""
        key = (parameter, dim)
        if key in self.vectors:
            self.tie(torch.from_numpy(self.vectors[key]), labels)
        else:
            self.vectors[key] = labels.numpy().copy()

    def produce(self, parameter: str, dim: int, size: int) -> torch.Tensor:
        """Fresh channels, or those that the (tied) parameter already has."""
        key = (parameter, dim)
        if key not in self.vectors:
            labels = self.fresh(size)
            self.vectors[key] = labels.numpy().copy()
            self.producers.append((parameter, self.vectors[key]))
        return torch.from_numpy(self.vectors[key]).clone()

    # -- operations --------------------------------------------------------------------------------

    def _call(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        target = node.target
        value = actual[node.name]
        if not any(isinstance(v, torch.Tensor) for v in _pytree.tree_leaves(value)):
            return value  # sizes and other numbers
        if target is operator.getitem:
            assert isinstance(node.args[0], fx.Node)
            return self.values[node.args[0].name][node.args[1]]
        rule = self._rule(target)
        if rule is not None:
            return rule(node, actual)
        entering = [self._labels(a, actual) for a in node.all_input_nodes]
        for labels in entering:
            if labels is not None:
                self.freeze(labels, f"{operation_name(node)} in {module_path(node) or 'the model'} mixes channels in a way that is not followed")
        return _pytree.tree_map(lambda v: torch.zeros(v.shape, dtype=torch.int64) if isinstance(v, torch.Tensor) else v, value)

    def _rule(self, target: Any) -> Callable[[fx.Node, dict[str, Any]], Any] | None:
        if target in CONVOLUTIONS:
            return self._convolution
        if target is aten.linear.default:
            return self._linear
        if target is aten.embedding.default:
            return self._embedding
        if target in RECURRENT:
            return self._recurrent
        if target in (aten.batch_norm.default, aten.instance_norm.default, aten.group_norm.default, aten.layer_norm.default, aten.prelu.default):
            return self._norm
        if target in MOVES:
            return self._move
        if target in UNCHANGED:
            return lambda node, actual: self._labels(node.args[0], actual)
        if target in SPATIAL:
            return self._spatial
        if target in REDUCTIONS:
            return self._reduce
        if target in NORMALISED:
            return self._normalise
        if target in CREATORS:
            return lambda node, actual: torch.full(actual[node.name].shape, FREE, dtype=torch.int64)
        if isinstance(target, torch._ops.OpOverload) and (torch.Tag.pointwise in target.tags or target in (aten.where.self, aten.masked_fill.Scalar)):
            return self._pointwise
        return None

    def _labels(self, argument: Any, actual: dict[str, Any]) -> torch.Tensor | None:
        """Labels of a tensor argument; a parameter met outside its layer gets labels per element."""
        if not isinstance(argument, fx.Node):
            return None
        found = self.values.get(argument.name)
        if isinstance(found, _Parameter):
            shape = self.program.parameter(found.name).shape
            if math.prod(shape) <= 1:
                return torch.full(shape, FREE, dtype=torch.int64)
            if found.labels is None:
                found.labels = self.fresh(math.prod(shape)).reshape(shape)
                self.loose.append(found)
            return found.labels
        return found if isinstance(found, torch.Tensor) else None

    @property
    def loose(self) -> list[_Parameter]:
        return self.__dict__.setdefault("_loose", [])  # type: ignore[no-any-return]

    def _parameter(self, argument: Any) -> str | None:
        found = self.values.get(argument.name) if isinstance(argument, fx.Node) else None
        return found.name if isinstance(found, _Parameter) else None

    def _spread(self, labels: torch.Tensor, dim: int, shape: Sequence[int]) -> torch.Tensor:
        return labels.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(*shape)

    def _convolution(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        weight, bias = self._parameter(node.args[1]), self._parameter(node.args[2]) if len(node.args) > 2 else None
        out = actual[node.name].shape
        if weight is None or x is None:
            return self._unknown(node, actual)
        transposed = CONVOLUTIONS[node.target].startswith("conv_transpose")
        groups, entering = groups_of(node), self.along(x, x.ndim - len(out[1:]))
        size = self.program.parameter(weight).shape
        channels_out = out[-len(out) + 1]
        per_in, per_out = len(entering) // groups, channels_out // groups
        grid = entering.reshape(groups, per_in)
        if per_in == 1 and groups > 1:  # depthwise: each group lives and dies with its input
            made = self.produce(weight, 0, size[0]) if not transposed else None
            if made is None:
                self.consume(weight, 0, entering)
                made = entering.repeat_interleave(per_out)
                if per_out > 1:
                    self.freeze(entering, "a depthwise transposed convolution with several outputs per input")
            else:
                self.tie(made.reshape(groups, per_out), entering[:, None])
        else:
            self.tie(grid, grid[:1])  # groups keep equal counts: the same positions in each
            self.consume(weight, 0 if transposed else 1, entering if transposed else grid[0])
            made = self.produce(weight, 1 if transposed else 0, size[1 if transposed else 0])
            if transposed:
                made = made.repeat(groups)
            else:
                self.tie(made.reshape(groups, per_out), made.reshape(groups, per_out)[:1])
        if bias is not None:
            self.consume(bias, 0, made)
        return self._spread(made, 1 if len(out) == x.ndim else 0, out)

    def _linear(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x, weight = self._labels(node.args[0], actual), self._parameter(node.args[1])
        if weight is None or x is None:
            return self._unknown(node, actual)
        self.consume(weight, 1, self.along(x, -1))
        made = self.produce(weight, 0, self.program.parameter(weight).shape[0])
        bias = self._parameter(node.args[2]) if len(node.args) > 2 else None
        if bias is not None:
            self.consume(bias, 0, made)
        return self._spread(made, -1, actual[node.name].shape)

    def _embedding(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        weight = self._parameter(node.args[0])
        if weight is None:
            return self._unknown(node, actual)
        rows, width = self.program.parameter(weight).shape
        self.freeze(self.produce(weight, 0, rows), "rows of an embedding are chosen by the data")
        return self._spread(self.produce(weight, 1, width), -1, actual[node.name].shape)

    def _recurrent(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        for argument in _pytree.tree_leaves(node.args[2]):
            name = self._parameter(argument)
            if name and ".weight_ih_l0" in f".{name}" and x is not None:
                self.consume(name, 1, self.along(x, -1))
        return _pytree.tree_map(lambda v: torch.zeros(v.shape, dtype=torch.int64), actual[node.name])

    def _norm(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        assert x is not None
        kind = node.target
        if kind is aten.layer_norm.default:
            shape = node.args[1]
            assert isinstance(shape, list | tuple)
            if len(shape) != 1:
                self.freeze(x, "a layer norm over several dimensions")
                return x
            channels = self.along(x, -1)
        else:
            channels = self.along(x, 1)
        if kind is aten.group_norm.default:
            groups = node.args[1]
            assert isinstance(groups, int)
            grid = channels.reshape(groups, -1)
            self.tie(grid, grid[:1])
        for argument in node.args[1:]:
            name = self._parameter(argument)
            if name is not None and self.program.parameter(name).numel() == len(channels):
                self.consume(name, 0, channels)
        return x

    def _move(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        def swap(a: fx.Node) -> Any:
            labels = self._labels(a, actual)
            return labels if labels is not None else actual[a.name]

        args, kwargs = fx.map_arg(node.args, swap), fx.map_arg(node.kwargs, swap)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _spatial(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        assert x is not None
        out = actual[node.name]
        shape = (out[0] if isinstance(out, tuple) else out).shape
        same = [d for d in range(x.ndim) if d < 2 and x.shape[d] == shape[d]]
        if same != [0, 1]:
            return self._unknown(node, actual)
        moved = x.reshape(x.shape[0], x.shape[1], -1)
        self.tie(moved, moved[:, :, :1])
        labels = moved[:, :, 0].reshape(x.shape[0], x.shape[1], *[1] * (len(shape) - 2)).expand(shape)
        return (labels, labels) if isinstance(out, tuple) else labels

    def _reduce(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        out = actual[node.name]
        first = out[0] if isinstance(out, tuple | list) else out
        place = 2 if node.target in (aten.norm.ScalarOpt_dim, aten.linalg_vector_norm.default) else 1
        dims = node.args[place] if len(node.args) > place else None
        if x is None or dims is None:
            return self._unknown(node, actual)
        chosen = [d % x.ndim for d in ([dims] if isinstance(dims, int) else list(dims))]  # type: ignore[arg-type]
        low, high = x, x
        for d in chosen:
            low, high = low.amin(d, keepdim=True), high.amax(d, keepdim=True)
        if not torch.equal(low, high):
            self.freeze(x, f"{operation_name(node)} in {module_path(node) or 'the model'} reduces over channels")
        labels = low.reshape(first.shape)
        return (labels, torch.zeros_like(labels)) if isinstance(out, tuple | list) else labels

    def _normalise(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        x = self._labels(node.args[0], actual)
        assert x is not None
        dim = node.args[1]
        assert isinstance(dim, int)
        if not torch.equal(x.amin(dim), x.amax(dim)):
            self.freeze(x, f"{operation_name(node)} in {module_path(node) or 'the model'} normalises over channels")
        return x

    def _pointwise(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        shape = actual[node.name].shape
        labels = [found for a in node.all_input_nodes if (found := self._labels(a, actual)) is not None]
        result = torch.full(shape, FREE, dtype=torch.int64)
        for found in labels:
            wide = found.expand(shape)
            self.tie(result, wide)
            result = torch.where(result == FREE, wide, result)
        return result

    def _unknown(self, node: fx.Node, actual: dict[str, Any]) -> Any:
        for a in node.all_input_nodes:
            labels = self._labels(a, actual)
            if labels is not None:
                self.freeze(labels, f"{operation_name(node)} in {module_path(node) or 'the model'} mixes channels in a way that is not followed")
        return _pytree.tree_map(lambda v: torch.zeros(v.shape, dtype=torch.int64) if isinstance(v, torch.Tensor) else v, actual[node.name])

    # -- what the labels say ---------------------------------------------------------------------

    def sites(self) -> tuple[list[Site], list[Refusal]]:
        """Sites in graph order, with their members, and the producers that are refused."""
        self._place_loose_parameters()
        root = self._roots()
        frozen = root[FROZEN]
        groups = self._producer_groups(root)
        sites, refusals = [], []
        for members in groups:
            where = f"{members[0][0].rpartition('.')[0]}#channels"
            units = root[members[0][1]]
            stuck = [label for _, vector in members for label in vector if root[label] == frozen]
            if stuck:
                why = next((self.reasons[i] for i in stuck if i in self.reasons), None) or self._reason_of(root, frozen)
                refusals.append(Refusal(where=where, reason=why))
                continue
            order = list(dict.fromkeys(units.tolist()))
            try:
                found = tuple(self._members(root, order))
            except UnsupportedSite as error:
                refusals.append(Refusal(where=where, reason=error.message))
                continue
            if len(order) > 1:
                sites.append(Site(id=where, kind="channels", op="channels", shape=(len(order),), members=found))
        return sites, refusals

    def _reason_of(self, root: np.ndarray[Any, Any], frozen: int) -> str:
        return "tied to something that must stay: an input or output of the model, or a recurrent or attention state"

    def _roots(self) -> np.ndarray[Any, Any]:
        if not self.pairs:
            return np.arange(self.count)
        pairs = np.concatenate(self.pairs)
        graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(self.count, self.count))
        return np.asarray(connected_components(graph, directed=False)[1])

    def _producer_groups(self, root: np.ndarray[Any, Any]) -> list[list[tuple[str, np.ndarray[Any, Any]]]]:
        """Producers whose channels are (partly) the same, together."""
        groups: list[list[tuple[str, np.ndarray[Any, Any]]]] = []
        home: dict[int, int] = {}
        frozen = int(root[FROZEN])
        for name, vector in self.producers:
            units = {int(u) for u in root[vector]}
            known = sorted({home[u] for u in units if u in home and u != frozen})
            place = known[0] if known else len(groups)
            if not known:
                groups.append([])
            for other in known[1:]:
                groups[place] += groups[other]
                groups[other] = []
                home = {u: place if h == other else h for u, h in home.items()}
            groups[place].append((name, vector))
            home |= dict.fromkeys(units, place)
        return [g for g in groups if g]

    def _members(self, root: np.ndarray[Any, Any], order: list[int]) -> list[Member]:
        number = np.full(root.max() + 1, -1)
        number[order] = np.arange(len(order))
        found = []
        for (parameter, dim), vector in self.vectors.items():
            channel = number[root[vector]]
            if (channel >= 0).any():
                found.append(_member(parameter, dim, channel, len(order)))
        return found

    def _place_loose_parameters(self) -> None:
        """A parameter that met channels element by element has them along one of its dimensions."""
        if not self.loose:
            return
        root = self._roots()
        for parameter in self.loose:
            assert parameter.labels is not None
            units = torch.from_numpy(root[parameter.labels.numpy()])
            for dim in range(units.ndim):
                moved = units.movedim(dim, 0).reshape(units.shape[dim], -1)
                if units.shape[dim] > 1 and (moved == moved[:, :1]).all():
                    self.vectors[(parameter.name, dim)] = parameter.labels.movedim(dim, 0).reshape(units.shape[dim], -1)[:, 0].numpy()
                    break
            else:
                self.freeze(parameter.labels, f"the parameter {parameter.name} meets channels in an irregular way")


@dataclass
class _Parameter:
    name: str
    labels: torch.Tensor | None = None


def _member(parameter: str, dim: int, channel: np.ndarray[Any, Any], count: int) -> Member:
    """The regular pattern behind the channel numbers along a dimension (-1: other channels).

    Raises:
        UnsupportedSite: there is none.
    """
    places = np.flatnonzero(channel >= 0)
    start, here = int(places[0]), channel[places]
    inner = int(np.argmax(here != here[0])) or len(here)
    outer, rest = divmod(len(here), count * inner)
    if rest == 0 and outer > 0 and len(places) == places[-1] - start + 1:
        pattern = np.tile(np.repeat(np.arange(count), inner), outer)
        if np.array_equal(pattern, here):
            return Member(parameter=parameter, dim=dim, view=(outer, count, inner), start=start)
    raise UnsupportedSite(f"its channels lie in an irregular order along dimension {dim} of {parameter}")


