"""Which channel labels layers read, make and tie: convolutions, linear and recurrent layers, embeddings, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from slimline.model import attention
from slimline.model.label_tensors import core, distinct, spread, varies
from slimline.model.operations import argument, operation_name

if TYPE_CHECKING:
    from slimline.model.labels import Labels, Read


def convolution(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[0]), labelling.parameter(node.args[1])
    if labels is None or weight is None or labels.ndim != len(weight.shape):
        return None
    transposed = operation_name(node).startswith("conv_transpose")
    groups = int(argument(node, "groups", 1) or 1)
    if groups > 1 and groups == weight.shape[0] == labels.shape[1] and not transposed:  # channel by channel, whichever they are in other places
        labelling.vectors((node.args[1], argument(node, "bias", 2)), labels, 1)
        return labelling.even(labels, range(2, labels.ndim)).expand(result.shape)
    entering = labelling.along(labels, 1)
    if groups == 1:
        labelling.tie(labelling.axis(weight.name, 0 if transposed else 1, entering.numel(), "in"), entering)
        leaving = labelling.axis(weight.name, 1 if transposed else 0, result.shape[1], "out")
    else:
        leaving = _grouped(labelling, weight, entering, groups, transposed, result.shape[1])
    labelling.vector(argument(node, "bias", 2), leaving)
    return spread(leaving, 1, result.shape)


def _grouped(labelling: Labels, weight: Read, entering: torch.Tensor, groups: int, transposed: bool, count: int) -> torch.Tensor:
    """Depthwise: an output goes with its input. Otherwise every group keeps the channels at the same places."""
    wide_in, wide_out = entering.numel() // groups, count // groups
    if wide_in == 1:
        leaving = labelling.axis(weight.name, 0, count, "tied") if not transposed else entering.repeat_interleave(wide_out)
        labelling.tie(leaving.reshape(groups, wide_out), entering.reshape(groups, 1))
        if transposed:
            labelling.tie(labelling.axis(weight.name, 0, groups, "tied"), entering)
        return leaving
    inside = entering.reshape(groups, wide_in)
    labelling.tie(inside[:1], inside)
    if transposed:
        labelling.tie(labelling.axis(weight.name, 0, entering.numel(), "in"), entering)
        return labelling.axis(weight.name, 1, wide_out, "out").repeat(groups)
    labelling.tie(labelling.axis(weight.name, 1, wide_in, "in"), inside[0])
    leaving = labelling.axis(weight.name, 0, count, "out")
    labelling.tie(leaving.reshape(groups, -1)[:1], leaving.reshape(groups, -1))
    return leaving


def linear(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[0]), labelling.parameter(node.args[1])
    if labels is None or weight is None or len(weight.shape) != 2:
        return None
    labelling.tie(labelling.axis(weight.name, 1, weight.shape[1], "in"), labelling.along(labels, -1))
    leaving = labelling.axis(weight.name, 0, weight.shape[0], "out")
    labelling.vector(argument(node, "bias", 2), leaving)
    return spread(leaving, -1, result.shape)


def matmul(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[0]), labelling.parameter(node.args[1])
    if weight is None:
        return attention.product(labelling, node, result)
    if labels is None or len(weight.shape) != 2:
        return None
    labelling.tie(labelling.axis(weight.name, 0, weight.shape[0], "in"), labelling.along(labels, -1))
    return spread(labelling.axis(weight.name, 1, weight.shape[1], "out"), -1, result.shape)


def addmm(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[1]), labelling.parameter(node.args[2])
    if labels is None or weight is None or len(weight.shape) != 2:
        return None
    labelling.tie(labelling.axis(weight.name, 0, weight.shape[0], "in"), labelling.along(labels, -1))
    leaving = labelling.axis(weight.name, 1, weight.shape[1], "out")
    labelling.vector(node.args[0], leaving)
    return spread(leaving, -1, result.shape)


def embedding(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    weight = labelling.parameter(node.args[0])
    if weight is None:
        return None
    labelling.freeze(labelling.read(node.args[1]), "its values are used as indices")
    return spread(labelling.axis(weight.name, 1, weight.shape[1], "out"), -1, result.shape)


def index(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    """Values picked by index tensors: run on the labels. What the indices pick from along its channels is picked by position."""
    labels, given = labelling.read(node.args[0]), node.args[1]
    indices: Any = given
    if operation_name(node) == "index_select":  # index_select(x, dim, index)
        assert isinstance(given, int)
        indices = [*[None] * (given % result.ndim), node.args[2]]
    if labels is None or not isinstance(indices, Sequence):
        return None
    for dim, place in enumerate(indices):
        labelling.freeze(labelling.read(place), "its values are used as indices")
        if place is not None and varies(labels, dim):
            labelling.picked.append((core(labels), dim))
    picked: torch.Tensor = labels[tuple(slice(None) if i is None else labelling.env[i] for i in indices)]
    return picked.reshape(result.shape)


def recurrent(labelling: Labels, node: fx.Node, result: Any) -> Any:
    """LSTM, GRU and plain ones: one hidden size for all layers and directions; gates lie one after the other."""
    labels = labelling.read(node.args[0])
    states = node.args[1] if isinstance(node.args[1], Sequence) else [node.args[1]]
    found = [p for n in node.args[2] if (p := labelling.parameter(n)) is not None]  # type: ignore[union-attr]  # a list of nodes
    hidden = next((p.shape[1] for p in found if "weight_hh" in p.name), 0)
    if labels is None or not hidden or len(found) != len(node.args[2]) or any("weight_hr" in p.name for p in found):  # type: ignore[arg-type]
        return None
    unit = labelling.fresh((hidden,))
    ways = 2 if node.args[7] else 1
    for p in found:
        gates = labelling.axis(p.name, 0, p.shape[0], "tied" if len(p.shape) == 1 or "weight_hh" in p.name else "out")
        labelling.tie(gates.reshape(-1, hidden), unit)
        if "weight_hh" in p.name:
            labelling.tie(labelling.axis(p.name, 1, hidden, "in"), unit)
        elif "weight_ih_l0" in p.name:
            labelling.tie(labelling.axis(p.name, 1, p.shape[1], "in"), labelling.along(labels, -1))
        elif "weight_ih" in p.name:
            labelling.tie(labelling.axis(p.name, 1, p.shape[1], "in").reshape(ways, hidden), unit)
    for state in states:
        if (value := labelling.read(state)) is not None:
            labelling.tie(value, unit)
    sequence = spread(unit.repeat(ways), -1, result[0].shape)
    return [sequence, *(spread(unit, -1, r.shape) for r in result[1:])]


def batch_norm(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    """Batch and instance norm: channel by channel."""
    labels = labelling.read(node.args[0])
    if labels is None or labels.ndim < 2:
        return None
    channels = labelling.along(labels, 1)
    for value in node.args[1:5]:
        labelling.vector(value, channels)
    return labels


def layer_norm(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, sizes, weight = labelling.read(node.args[0]), node.args[1], labelling.parameter(node.args[2] if len(node.args) > 2 else None)
    if labels is None or not isinstance(sizes, Sequence) or len(sizes) != 1 or weight is None:
        return None
    labelling.vectors((node.args[2], argument(node, "bias", None)), labels, -1, mixes=True)
    return labels


def group_norm(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[0]), labelling.parameter(argument(node, "weight", 2))
    if labels is None or weight is None:
        return None
    channels = labelling.along(labels, 1)
    groups = channels.reshape(int(node.args[1]), -1)  # type: ignore[arg-type]  # an int by its schema
    labelling.tie(groups[:1], groups)
    labelling.vector(argument(node, "weight", 2), channels)
    labelling.vector(argument(node, "bias", 3), channels)
    labelling.mixed.append(distinct(channels))
    return labels


def prelu(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels, weight = labelling.read(node.args[0]), labelling.parameter(node.args[1])
    if labels is None or weight is None:
        return None
    if weight.shape[0] > 1:
        labelling.vector(node.args[1], labelling.along(labels, 1))
    return labels


Rule = Callable[["Labels", fx.Node, Any], Any]
LAYERS: Mapping[str, Rule] = MappingProxyType(
    {
        "linear": linear,
        "matmul": matmul,
        "mm": matmul,
        "bmm": matmul,
        "baddbmm": attention.product,
        "einsum": attention.einsum,
        "addmm": addmm,
        "scaled_dot_product_attention": attention.attention,
        "embedding": embedding,
        "index": index,
        "index_select": index,
        "lstm": recurrent,
        "gru": recurrent,
        "rnn_tanh": recurrent,
        "rnn_relu": recurrent,
        "batch_norm": batch_norm,
        "instance_norm": batch_norm,
        "layer_norm": layer_norm,
        "rms_norm": layer_norm,
        "group_norm": group_norm,
        "prelu": prelu,
    }
)

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "scaled_dot_product_attention": "its channels are those of an attention without heads, or that shares them otherwise",
        "matmul": "its channels meet in a product of two values, as in attention",
        "bmm": "its channels meet in a product of two values, as in attention",
        "einsum": "its channels meet in a product of two values",
        "layer_norm": "they are normalised without a weight, or over several dimensions",
        "group_norm": "they are normalised in groups without a weight",
        "lstm": "a recurrent layer with projections has no rule",
        "gru": "a recurrent layer with projections has no rule",
    }
)
