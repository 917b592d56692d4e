"""Which operators of a .tflite file each operation of a program becomes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx

from slimline.errors import LoweringError
from slimline.model.operations import PADS, operation_name
from slimline.targets._tflite_file import Tensor
from slimline.targets._tflite_layers import (
    argument,
    around,
    average_pool,
    convolution,
    embedding,
    linear,
    max_pool,
    mean,
    pad,
    spatial_pads,
    stored_axis,
)
from slimline.targets._tflite_lowering import ACTIVATIONS, CARRIES_ORDER, CONVOLUTIONS, FLATTENING, Lowering, Value, given, stored_shape

aten = torch.ops.aten

# -- element-wise -----------------------------------------------------------------------------------


def binary(kind: str, table: str, lowering: Lowering, node: fx.Node) -> None:
    if argument(node, 2, "alpha", 1) != 1:
        raise LoweringError(f"{operation_name(node)} with alpha has no operator in a .tflite file.")
    target = lowering.integer_output(node)
    integers = [lowering.integer_input(a) for a in given(node)[:2]] if target is not None else []
    if target is not None and all(v is not None for v in integers) and kind != "DIV":
        quantizer, fused, grid = target
        values: list[Value] = [v for v in integers if v is not None]
    else:
        quantizer, fused, grid = None, lowering.float_fused(node), None
        values = [_number(lowering, a) if isinstance(a, int | float) else lowering.float_value(a) for a in given(node)[:2]]
    values = aligned(lowering, values)
    shape, last = lowering.shape(node), any(v.last for v in values)
    output = Tensor(stored_shape(shape, last), "int8" if grid else "float32", grid)
    tensor = lowering.file.operator(kind, [v.tensor for v in values], output, table, fusedActivationFunction=ACTIVATIONS[fused])
    lowering.finish(node, Value(tensor, shape, last), fused, quantizer)


def _number(lowering: Lowering, number: float) -> Value:
    return Value(lowering.file.constant(np.array([number], np.float32)), (1,))


def aligned(lowering: Lowering, values: Sequence[Value]) -> list[Value]:
    """All with channels last if one has them so, else all in the program's own order."""
    if not any(v.last for v in values):
        return [lowering.plain(v) for v in values]
    rank = max(len(v.shape) for v in values)
    found = []
    for value in values:
        if math.prod(value.shape) != 1 and len(value.shape) < rank:
            shape = (1,) * (rank - len(value.shape)) + value.shape
            value = lowering.reshape(value, shape, replace(value, shape=shape))
        found.append(value if math.prod(value.shape) == 1 and len(value.shape) < rank else lowering.channels_last(value))
    return found


def unary(kind: str, table: str, lowering: Lowering, node: fx.Node, **options: Any) -> None:
    value = lowering.float_value(given(node)[0])
    tensor = lowering.file.operator(kind, [value.tensor], replace(lowering.file.tensors[value.tensor], name=""), table, **options)
    lowering.values[node] = replace(value, tensor=tensor)


def rectifier(lowering: Lowering, node: fx.Node) -> None:
    """A relu or clamp that no operator before it took along."""
    low, high = (0.0, 6.0) if node.target is aten.relu6.default else (0.0, None)
    if node.target not in (aten.relu.default, aten.relu_.default, aten.relu6.default):
        hard = node.target in (aten.hardtanh.default, aten.hardtanh_.default)
        low, high = argument(node, 1, "min", -1.0 if hard else None), argument(node, 2, "max", 1.0 if hard else None)
    kind = {(0.0, None): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
    target = lowering.integer_output(node)
    value = lowering.integer_input(given(node)[0]) if target is not None else None
    if kind in ("RELU", "RELU6") and value is not None and target is not None and not target[1]:
        tensor = lowering.file.operator(kind, [value.tensor], replace(lowering.file.tensors[value.tensor], grid=target[2], name=""))
        lowering.finish(node, replace(value, tensor=tensor), "", target[0])
        return
    value = lowering.float_value(given(node)[0])
    if kind is not None:
        value = replace(value, tensor=lowering.file.operator(kind, [value.tensor], replace(lowering.file.tensors[value.tensor], name="")))
    else:
        for bound, limit in (("MAXIMUM", low), ("MINIMUM", high)):
            if limit is not None:
                inputs = [value.tensor, lowering.file.constant(np.array([limit], np.float32))]
                tensor = lowering.file.operator(bound, inputs, replace(lowering.file.tensors[value.tensor], name=""), "MaximumMinimumOptions")
                value = replace(value, tensor=tensor)
    lowering.values[node] = value


def gelu(lowering: Lowering, node: fx.Node) -> None:
    unary("GELU", "GeluOptions", lowering, node, approximate=node.kwargs.get("approximate", "none") == "tanh")


def leaky_relu(lowering: Lowering, node: fx.Node) -> None:
    unary("LEAKY_RELU", "LeakyReluOptions", lowering, node, alpha=float(argument(node, 1, "negative_slope", 0.01)))


def silu(lowering: Lowering, node: fx.Node) -> None:
    value = lowering.float_value(given(node)[0])
    like = replace(lowering.file.tensors[value.tensor], name="")
    gate = lowering.file.operator("LOGISTIC", [value.tensor], like)
    lowering.values[node] = replace(value, tensor=lowering.file.operator("MUL", [value.tensor, gate], like, "MulOptions"))


def hardsigmoid(lowering: Lowering, node: fx.Node) -> None:
    value = lowering.float_value(given(node)[0])
    like = replace(lowering.file.tensors[value.tensor], name="")
    three, sixth = (lowering.file.constant(np.array([c], np.float32)) for c in (3.0, 1.0 / 6.0))
    clipped = lowering.file.operator("ADD", [value.tensor, three], like, "AddOptions", fusedActivationFunction=ACTIVATIONS["relu6"])
    lowering.values[node] = replace(value, tensor=lowering.file.operator("MUL", [clipped, sixth], like, "MulOptions"))


def softmax(lowering: Lowering, node: fx.Node) -> None:
    value = lowering.plain(lowering.float_value(given(node)[0]))
    dim = given(node)[1]
    assert isinstance(dim, int)
    if dim % len(value.shape) != len(value.shape) - 1:
        raise LoweringError(f"{operation_name(node)} over dimension {dim} of {len(value.shape)}: a .tflite file has it for the last one.")
    like = replace(lowering.file.tensors[value.tensor], name="")
    if node.target is aten.softmax.int:
        tensor = lowering.file.operator("SOFTMAX", [value.tensor], like, "SoftmaxOptions", beta=1.0)
    else:
        tensor = lowering.file.operator("LOG_SOFTMAX", [value.tensor], like, "LogSoftmaxOptions")
    lowering.values[node] = replace(value, tensor=tensor)


def batch_norm(lowering: Lowering, node: fx.Node) -> None:
    """One that could not be folded: a product and a sum per channel."""
    value = lowering.float_value(given(node)[0])
    value = lowering.channels_last(value) if len(value.shape) > 2 else value
    gamma, beta, average, variance = (None if a is None else lowering.array(a).astype(np.float64) for a in given(node)[1:5])
    if average is None or variance is None or given(node)[5]:
        raise LoweringError("batch_norm in training mode has no operator in a .tflite file.", hint="Call model.eval().")
    scale = (1.0 if gamma is None else gamma) / np.sqrt(variance + given(node)[7])
    shift = (0.0 if beta is None else beta) - average * scale
    like = replace(lowering.file.tensors[value.tensor], name="")
    product = lowering.file.operator("MUL", [value.tensor, lowering.file.constant(scale.astype(np.float32))], like, "MulOptions")
    tensor = lowering.file.operator("ADD", [product, lowering.file.constant(shift.astype(np.float32))], like, "AddOptions")
    lowering.values[node] = replace(value, tensor=tensor)


# -- what only moves values --------------------------------------------------------------------------


def moved(lowering: Lowering, node: fx.Node) -> Value:
    """The input in the form that it has: integers stay integers."""
    return lowering.integer_input(given(node)[0]) or lowering.float_value(given(node)[0])


def reshape(lowering: Lowering, node: fx.Node) -> None:
    value, shape = moved(lowering, node), lowering.shape(node)
    _, *rest = value.shape
    if value.last and node.target in FLATTENING and shape == (value.shape[0], math.prod(rest)) and len(value.shape) == 4 and feeds_linear(node):
        order = (rest[0], rest[1], rest[2])
        lowering.values[node] = lowering.reshape(value, shape, Value(-1, shape, order=None if rest[1] == rest[2] == 1 else order))
        return
    if shape == value.shape:
        lowering.values[node] = value
        return
    value = lowering.plain(value)
    lowering.values[node] = lowering.reshape(value, shape, Value(-1, shape))


def feeds_linear(node: fx.Node) -> bool:
    """Whether nothing but linear layers reads the value, whatever element-wise step comes before them."""
    return bool(node.users) and all(u.target is aten.linear.default or (u.target in CARRIES_ORDER and feeds_linear(u)) for u in node.users)


def permute(lowering: Lowering, node: fx.Node) -> None:
    value = lowering.plain(moved(lowering, node))
    rank = len(value.shape)
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [d % rank for d in given(node)[1]]
    else:
        first, second = given(node)[1] % rank, given(node)[2] % rank
        order[first], order[second] = order[second], order[first]
    lowering.values[node] = lowering.transpose(value, tuple(order), lowering.shape(node))


def select(lowering: Lowering, node: fx.Node) -> None:
    """Some positions along one dimension: the inputs that a model still reads."""
    value, shape = moved(lowering, node), lowering.shape(node)
    _, dim, index = given(node)
    value = lowering.plain(value) if value.order is not None else value
    axis = stored_axis(dim % len(shape), len(shape)) if value.last else dim % len(shape)
    positions = lowering.file.constant(lowering.array(index).astype(np.int32))
    output = replace(lowering.file.tensors[value.tensor], shape=stored_shape(shape, value.last), name="")
    tensor = lowering.file.operator("GATHER", [value.tensor, positions], output, "GatherOptions", axis=axis)
    lowering.values[node] = replace(value, tensor=tensor, shape=shape)


def padding(lowering: Lowering, node: fx.Node) -> None:
    pads = spatial_pads(node, len(lowering.shape(node)))
    if pads is None:
        raise LoweringError(f"{operation_name(node)}: only zeros around height and width have an operator in the .tflite lowering.")
    if all(u.target in CONVOLUTIONS and u.args[0] is node for u in node.users):
        return  # the convolution takes it along
    value = lowering.channels_last(moved(lowering, node))
    lowering.values[node] = replace(pad(lowering, value, around(pads)), shape=lowering.shape(node))


def concatenate(lowering: Lowering, node: fx.Node) -> None:
    parts, dim = given(node)[0], argument(node, 1, "dim", 0)
    target = lowering.integer_output(node)
    integers = [lowering.integer_input(p) for p in parts] if target is not None else []
    grid = target[2] if target is not None and not target[1] and all(v is not None for v in integers) else None
    values = [lowering.quantized(v, grid) for v in integers if v is not None] if grid is not None else [lowering.float_value(p) for p in parts]
    values = aligned(lowering, values)
    shape, last = lowering.shape(node), values[0].last
    axis = stored_axis(dim % len(shape), len(shape)) if last else dim % len(shape)
    output = Tensor(stored_shape(shape, last), "int8" if grid is not None else "float32", grid)
    tensor = lowering.file.operator("CONCATENATION", [v.tensor for v in values], output, "ConcatenationOptions", axis=axis)
    lowering.finish(node, Value(tensor, shape, last), "", target[0] if grid is not None and target is not None else None)


OPERATORS: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    **dict.fromkeys(CONVOLUTIONS, convolution),
    aten.linear.default: linear,
    aten.embedding.default: embedding,
    aten.mean.dim: mean,
    aten.adaptive_avg_pool2d.default: average_pool,
    aten.avg_pool2d.default: average_pool,
    aten.max_pool2d.default: max_pool,
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor), functools.partial(binary, "ADD", "AddOptions")),
    **dict.fromkeys((aten.mul.Tensor, aten.mul_.Tensor), functools.partial(binary, "MUL", "MulOptions")),
    aten.sub.Tensor: functools.partial(binary, "SUB", "SubOptions"),
    aten.div.Tensor: functools.partial(binary, "DIV", "DivOptions"),
    **dict.fromkeys(
        (aten.relu.default, aten.relu_.default, aten.relu6.default, aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default, aten.clamp_.default),
        rectifier,
    ),
    aten.sigmoid.default: functools.partial(unary, "LOGISTIC", ""),
    aten.tanh.default: functools.partial(unary, "TANH", ""),
    **dict.fromkeys((aten.hardswish.default, aten.hardswish_.default), functools.partial(unary, "HARD_SWISH", "HardSwishOptions")),
    **dict.fromkeys((aten.hardsigmoid.default, aten.hardsigmoid_.default), hardsigmoid),
    **dict.fromkeys((aten.silu.default, aten.silu_.default), silu),
    **dict.fromkeys((aten.leaky_relu.default, aten.leaky_relu_.default), leaky_relu),
    aten.gelu.default: gelu,
    **dict.fromkeys((aten.softmax.int, aten.log_softmax.int), softmax),
    aten.batch_norm.default: batch_norm,
    **dict.fromkeys((*FLATTENING, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default), reshape),
    **dict.fromkeys((aten.permute.default, aten.transpose.int), permute),
    aten.index_select.default: select,
    **dict.fromkeys(PADS, padding),
    aten.cat.default: concatenate,
}
