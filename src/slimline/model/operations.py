"""The operations of an exported graph: which there are, what they are called, what they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import fx

from slimline.core.site import Op

aten = torch.ops.aten

CONVOLUTIONS: Mapping[Any, Op] = MappingProxyType(
    {
        aten.conv1d.default: "conv1d",
        aten.conv2d.default: "conv2d",
        aten.conv3d.default: "conv3d",
        aten.conv1d.padding: "conv1d",
        aten.conv2d.padding: "conv2d",
        aten.conv3d.padding: "conv3d",
        aten.conv_transpose1d.default: "conv_transpose1d",
        aten.conv_transpose2d.input: "conv_transpose2d",
        aten.conv_transpose3d.input: "conv_transpose3d",
    }
)
RECURRENT: Mapping[Any, Op] = MappingProxyType({aten.lstm.input: "lstm", aten.gru.input: "gru"})
RELU = frozenset({aten.relu.default, aten.relu_.default})
CLAMP = frozenset({aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default, aten.relu6.default})
# What gives back the values that enter it, where no gradient flows and nothing is trained.
SAME = frozenset(
    {
        aten.dropout.default,
        aten.dropout_.default,
        aten.feature_dropout.default,
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.contiguous.default,
    }
)
# What moves or picks values without computing new ones (or adds zeros, which every grid has): one scale serves both sides.
TRANSPARENT = SAME | {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool3d.default,
    aten.pad.default,
    aten.constant_pad_nd.default,
}
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})
NORMS = frozenset({aten.batch_norm.default})
COMPUTING = frozenset(
    {
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.mul.Tensor,
        aten.mul_.Tensor,
        aten.mean.dim,
        aten.adaptive_avg_pool2d.default,
        aten.avg_pool2d.default,
        aten.cat.default,
    }
)  # what computes without a weight and has an integer kernel
PRODUCTS = frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default, aten.scaled_dot_product_attention.default})


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that the node was called in; ``""`` for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return "" if path.startswith("_empty_nn_module_stack") else path.removeprefix("L['self'].").split("@")[0]


def within(node: fx.Node, module: str) -> bool:
    """Whether the node was called inside ``module`` or a descendant of it."""
    return any(str(path).split("@")[0] == module for path, _ in (node.meta.get("nn_module_stack") or {}).values())


def operation_name(node: fx.Node) -> str:
    """``conv2d`` for ``aten.conv2d.default``; in-place twins share the name."""
    target = node.target
    name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return name.removesuffix("_") if not name.startswith("_") else name


def weight_arguments(node: fx.Node) -> Iterator[tuple[Op, fx.Node, fx.Node | None]]:
    """``(operation, weight, bias)`` of every weight that a node consumes."""
    if node.op != "call_function":
        return
    if node.target in CONVOLUTIONS or node.target is aten.linear.default:
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        assert isinstance(weight, fx.Node)
        yield CONVOLUTIONS.get(node.target, "linear"), weight, bias if isinstance(bias, fx.Node) else None
    elif node.target is aten.embedding.default and isinstance(node.args[0], fx.Node):
        yield "embedding", node.args[0], None
    elif node.target in RECURRENT:
        parameters = node.args[2]
        assert isinstance(parameters, Sequence)
        for p in parameters:
            if isinstance(p, fx.Node) and (p.op != "get_attr" or ".weight_" in f".{p.target}"):  # only weights are decoded, biases never
                yield RECURRENT[node.target], p, None


def groups_of(node: fx.Node) -> int:
    """``groups`` of a convolution; 1 for anything else."""
    if node.target not in CONVOLUTIONS:
        return 1
    value = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    assert isinstance(value, int)
    return value


def activation_after(node: fx.Node) -> tuple[fx.Node, Literal["", "relu", "relu6"]]:
    """The node after a relu or relu6 that alone consumes ``node``, which kernels fuse; else itself."""
    users = list(node.users)
    if len(users) != 1:
        return node, ""
    user = users[0]
    if user.target in RELU:
        return user, "relu"
    if user.target in CLAMP:
        low, high = (user.args[1] if len(user.args) > 1 else 0.0), (user.args[2] if len(user.args) > 2 else None)
        if user.target is aten.relu6.default or (low == 0.0 and high == 6.0):
            return user, "relu6"
    return node, ""


def through_transparent(node: Any) -> fx.Node:
    """Back to the value that reshapes and max pooling only moved."""
    while isinstance(node, fx.Node) and is_transparent(node):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def is_transparent(node: fx.Node) -> bool:
    """Whether the node only moves or picks values, or pads them with zeros."""
    if node.target in PADS:
        fill = (
            node.args[3]
            if node.target is aten.pad.default and len(node.args) > 3
            else node.args[2]
            if node.target is aten.constant_pad_nd.default and len(node.args) > 2
            else 0
        )
        kind = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
        return kind == "constant" and fill in (None, 0, 0.0)
    return node.target in TRANSPARENT


def argument(node: fx.Node, name: str, position: int | None) -> Any:
    """An argument of an operation by its name in the schema."""
    if name in node.kwargs:
        return node.kwargs[name]
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        for place, argument in enumerate(schema.arguments):
            if argument.name == name:
                return node.args[place] if place < len(node.args) else argument.default_value if argument.has_default_value() else None
    return node.args[position] if position is not None and position < len(node.args) else None
