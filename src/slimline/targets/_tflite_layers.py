"""Layers with weights, pooling and means in a .tflite file: windows, their padding, and what runs in integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from slimline.errors import LoweringError
from slimline.model.operations import PADS, groups_of, operation_name
from slimline.targets._tflite_file import Grid, Tensor
from slimline.targets._tflite_lowering import ACTIVATIONS, Lowering, Value, given, stored_shape

aten = torch.ops.aten
SAME, VALID = 0, 1
INT32 = np.iinfo(np.int32)
LARGEST_BIAS = 2**30  # steps: half of what an int32 holds, so that the sum has room
Layout = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
Pads = tuple[tuple[int, int], tuple[int, int]]


def argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return given(node)[place] if len(node.args) > place else node.kwargs.get(name, default)


def pair(value: Any) -> tuple[int, int]:
    """Of height and width; a sequence has the height 1."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


# -- windows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A sliding window over height and width. ``pads``: zeros before and after that it really reads."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: Pads
    same: bool
    """Whether ``SAME`` means these pads."""

    @classmethod
    def of(
        cls, size: Sequence[int], out: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], before: Sequence[int]
    ) -> Window:
        pads, same = [], True
        for n, o, k, s, d, b in zip(size, out, kernel, stride, dilation, before, strict=True):
            after = max(0, (o - 1) * s + (k - 1) * d + 1 - n - b)
            pads.append((b, after))
            total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
            same = same and o == math.ceil(n / s) and (b, after) == (total // 2, total - total // 2)
        return cls(pair(size), pair(kernel), pair(stride), pair(dilation), (pads[0], pads[1]), same)

    @property
    def padded(self) -> bool:
        return self.pads != ((0, 0), (0, 0))


def spatial(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])


def pad(lowering: Lowering, value: Value, before_after: Sequence[tuple[int, int]], fill: float | None = None) -> Value:
    """With zeros (or ``fill``) around it; pairs by dimension of the stored tensor."""
    tensor = lowering.file.tensors[value.tensor]
    shape = tuple(n + b + a for n, (b, a) in zip(tensor.shape, before_after, strict=True))
    inputs = [value.tensor, lowering.file.constant(np.array(before_after, np.int32))]
    kind, options = "PAD", "PadOptions"
    if fill is not None:
        constant = np.array([-128], np.int8) if tensor.grid is not None else np.array([fill], np.float32)
        inputs.append(lowering.file.constant(constant, grid=tensor.grid))
        kind, options = "PADV2", "PadV2Options"
    return replace(value, tensor=lowering.file.operator(kind, inputs, replace(tensor, shape=shape, name=""), options))


def around(pads: Pads) -> list[tuple[int, int]]:
    return [(0, 0), *pads, (0, 0)]


# -- layers with weights ------------------------------------------------------------------------


def convolution(lowering: Lowering, node: fx.Node) -> None:
    source, weight = given(node)[0], given(node)[1]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    before = (0, 0)
    if source.target in PADS and source not in lowering.values:  # waits for this window
        (top, _), (left, _) = spatial_pads(source, len(lowering.shape(source))) or ((0, 0), (0, 0))
        before, source = (top, left), given(source)[0]
    shape = lowering.array(weight).shape
    kernel = (1, shape[2]) if len(shape) == 3 else (shape[2], shape[3])
    one = len(shape) == 3
    stride, dilation = (as_two(argument(node, i, n, 1), one, 1) for i, n in ((3, "stride"), (5, "dilation")))
    padding = argument(node, 4, "padding", 0)
    if padding == "same":
        own = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        own = (0, 0) if padding == "valid" else as_two(padding, one, 0)
    out_shape = lowering.shape(node)
    window = Window.of(spatial(lowering.shape(source)), spatial(out_shape), kernel, stride, dilation, (before[0] + own[0], before[1] + own[1]))
    depthwise = groups_of(node) > 1 and shape[1] == 1
    axis = 3 if depthwise else 0
    kind, table = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    options: dict[str, Any] = {"strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0], "dilationWFactor": dilation[1]}
    if depthwise:
        options["depthMultiplier"] = shape[0] // groups_of(node)

    def layout(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = array[:, :, None] if array.ndim == 3 else array
        return array.transpose(1, 2, 3, 0) if depthwise else array.transpose(0, 2, 3, 1)

    weighted(lowering, node, source, layout, axis, Operator(kind, table, options, stored_shape(out_shape, True), True, window))


def as_two(value: Any, one: bool, missing: int) -> tuple[int, int]:
    return (missing, pair(value)[1]) if one else pair(value)


@dataclass(frozen=True)
class Operator:
    """What a weighted layer becomes; ``shape`` is the stored output's."""

    kind: str
    table: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    last: bool
    window: Window | None = None


def weighted(lowering: Lowering, node: fx.Node, source: fx.Node, layout: Layout, axis: int, operator: Operator, key: str = "") -> None:
    """A convolution or linear layer: in integers where its plan, its input and its output are; else in float32."""
    weight, bias = given(node)[1], argument(node, 2, "bias", None)
    assert isinstance(weight, fx.Node)
    encode = lowering.encoding(weight)
    execute = encode.execute if encode is not None else "float"
    target = lowering.integer_output(node) if execute == "integer" else None
    value = lowering.integer_input(source) if target is not None else None
    integer = value is not None and target is not None
    if value is None:
        value = lowering.float_value(source)
    options = dict(operator.options)
    if operator.window is not None:
        value = lowering.channels_last(value)
        options["padding"] = SAME if operator.window.same and operator.window.padded else VALID
        if operator.window.padded and not operator.window.same:
            value = pad(lowering, value, around(operator.window.pads))
    elif value.order is None:
        value = lowering.plain(value)
    outputs = operator.shape[-1]
    floats = np.zeros(outputs, np.float32) if bias is None else lowering.array(bias)
    if integer and target is not None:
        quantizer, fused, grid = target
        step = np.float64(lowering.grid(value).scale[0])
        stored = lowering.weight(weight, layout, axis, key, np.abs(floats.astype(np.float64)) / (step * LARGEST_BIAS))
        weight_grid = lowering.file.tensors[stored].grid
        assert weight_grid is not None
        scale = step * np.array(weight_grid.scale, np.float64)
        integers = np.clip(np.round(floats / scale), INT32.min, INT32.max).astype(np.int32)
        constants = [stored, lowering.file.constant(integers, grid=Grid(tuple(np.broadcast_to(scale, (len(weight_grid.scale),)).tolist())))]
        output = Tensor(operator.shape, "int8", grid)
    else:
        quantizer, fused = None, lowering.float_fused(node)
        dynamic = execute == "dynamic" and operator.kind == "FULLY_CONNECTED"
        constants = [lowering.weight(weight, layout, axis, key) if dynamic else lowering.decoded(weight, layout, axis, key)]
        constants.append(lowering.file.constant(floats.astype(np.float32)))
        if dynamic:
            options["asymmetricQuantizeInputs"] = True
        output = Tensor(operator.shape)
    tensor = lowering.file.operator(operator.kind, [value.tensor, *constants], output, operator.table, fusedActivationFunction=ACTIVATIONS[fused], **options)
    lowering.finish(node, Value(tensor, lowering.shape(node), operator.last), fused, quantizer)


def linear(lowering: Lowering, node: fx.Node) -> None:
    source = given(node)[0]
    assert isinstance(source, fx.Node)
    shape = lowering.shape(node)
    read = lowering.integer_input(source) or lowering.values[source]
    order, key = read.order, ""
    if order is not None:  # the layer's columns are moved, not its input
        c, h, w = order
        key = f"{h}x{w}"

    def layout(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return array if order is None else array.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(len(array), -1)

    weighted(lowering, node, source, layout, 0, Operator("FULLY_CONNECTED", "FullyConnectedOptions", {"keepNumDims": len(shape) > 2}, shape, False), key)


def embedding(lowering: Lowering, node: fx.Node) -> None:
    weight, ids = given(node)[0], lowering.values[given(node)[1]]
    assert isinstance(weight, fx.Node)
    table = lowering.decoded(weight, lambda array: array, 0)
    shape = lowering.shape(node)
    lowering.values[node] = Value(lowering.file.operator("GATHER", [table, ids.tensor], Tensor(shape), "GatherOptions"), shape)


# -- pooling and means ----------------------------------------------------------------------------


def mean(lowering: Lowering, node: fx.Node) -> None:
    dims = given(node)[1] if len(node.args) > 1 else None
    shape = lowering.shape(given(node)[0])
    axes = tuple(d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(shape))))
    if 0 in axes:
        raise LoweringError(f"{operation_name(node)}: a mean over the batch has no meaning in a file that runs one sample.")
    _mean(lowering, node, axes, bool(argument(node, 2, "keepdim", False)))


def _mean(lowering: Lowering, node: fx.Node, axes: tuple[int, ...], keep: bool) -> None:
    target = lowering.integer_output(node)
    value = lowering.integer_input(given(node)[0]) if target is not None else None
    quantizer = target[0] if value is not None and target is not None and not target[1] else None
    if value is None or quantizer is None:
        value = lowering.float_value(given(node)[0])
    rank = len(value.shape)
    all_spatial = set(axes) == set(range(2, rank))
    if value.last and not (keep or all_spatial):
        value = lowering.plain(value)
    stored = lowering.file.tensors[value.tensor].shape
    where = sorted(stored_axis(d, rank) for d in axes) if value.last else sorted(axes)
    if value.last and rank == 3 and not keep:
        where = [1, 2]
    shape = lowering.shape(node)
    out = stored_shape(shape, True) if value.last and keep else shape
    grid = target[2] if quantizer is not None and target is not None else None
    tensor = lowering.file.operator(
        "MEAN",
        [value.tensor, lowering.file.constant(np.array(where, np.int32))],
        Tensor(out, "int8" if grid else "float32", grid),
        "ReducerOptions",
        keepDims=len(out) == len(stored),
    )
    lowering.finish(node, Value(tensor, shape, value.last and keep), "", quantizer)


def stored_axis(dim: int, rank: int) -> int:
    """Where a dimension of a value lies once its channels are last."""
    return {0: 0, 1: 3, 2: 2}[dim] if rank == 3 else {0: 0, 1: 3, 2: 1, 3: 2}[dim]


def average_pool(lowering: Lowering, node: fx.Node) -> None:
    size, out = spatial(lowering.shape(given(node)[0])), spatial(lowering.shape(node))
    if node.target is aten.adaptive_avg_pool2d.default:
        if size[0] % out[0] or size[1] % out[1]:
            raise LoweringError(f"adaptive_avg_pool2d from {size} to {out}: its windows differ in size.", hint="Use an output size that divides the input's.")
        kernel = stride = (size[0] // out[0], size[1] // out[1])
        padding = (0, 0)
    else:
        kernel = pair(given(node)[1])
        stride, padding = pair(argument(node, 2, "stride", ()) or kernel), pair(argument(node, 3, "padding", 0))
        if argument(node, 6, "divisor_override", None) is not None or (padding != (0, 0) and not argument(node, 5, "count_include_pad", True)):
            raise LoweringError("avg_pool2d: a divisor of its own has no operator in the .tflite lowering.")
    if out == (1, 1) and kernel == size and padding == (0, 0):
        _mean(lowering, node, (2, 3), True)
        return
    window = Window.of(size, out, kernel, stride, (1, 1), padding)
    if any(after > p for (_, after), p in zip(window.pads, padding, strict=True)):  # these are divided by fewer values than the others
        raise LoweringError("avg_pool2d with ceil_mode: windows that reach beyond the edge have no operator in the .tflite lowering.")
    value = lowering.channels_last(lowering.integer_input(given(node)[0]) or lowering.float_value(given(node)[0]))
    if window.padded:
        value = pad(lowering, value, around(window.pads))
    _pool(lowering, node, "AVERAGE_POOL_2D", value, window, VALID)


def max_pool(lowering: Lowering, node: fx.Node) -> None:
    kernel = pair(given(node)[1])
    stride, padding, dilation = pair(argument(node, 2, "stride", ()) or kernel), pair(argument(node, 3, "padding", 0)), pair(argument(node, 4, "dilation", 1))
    if dilation != (1, 1):
        raise LoweringError("max_pool2d with dilation has no operator in a .tflite file.")
    window = Window.of(spatial(lowering.shape(given(node)[0])), spatial(lowering.shape(node)), kernel, stride, dilation, padding)
    value = lowering.channels_last(lowering.integer_input(given(node)[0]) or lowering.float_value(given(node)[0]))
    if window.padded and not window.same:
        value = pad(lowering, value, around(window.pads), fill=float(np.finfo(np.float32).min))
    _pool(lowering, node, "MAX_POOL_2D", value, window, SAME if window.same and window.padded else VALID)


def _pool(lowering: Lowering, node: fx.Node, kind: str, value: Value, window: Window, padding: int) -> None:
    """Input and output share one grid, as the operator demands."""
    shape = lowering.shape(node)
    before = lowering.file.tensors[value.tensor]
    tensor = lowering.file.operator(
        kind,
        [value.tensor],
        replace(before, shape=stored_shape(shape, True), name=""),
        "Pool2DOptions",
        padding=padding,
        strideH=window.stride[0],
        strideW=window.stride[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )
    lowering.values[node] = Value(tensor, shape, True)


def spatial_pads(node: fx.Node, rank: int) -> Pads | None:
    """Height's and width's zeros, before and after; ``None`` if it pads anything else."""
    amounts = list(given(node)[1])
    place = 3 if node.target is aten.pad.default else 2
    fill = argument(node, place, "value", 0)
    constant = node.target is not aten.pad.default or argument(node, 2, "mode", "constant") == "constant"
    if not constant or fill not in (None, 0, 0.0) or any(a < 0 for a in amounts) or any(amounts[2 * (rank - 2) :]):
        return None
    width, height = (amounts[0], amounts[1]), (amounts[2], amounts[3]) if len(amounts) > 3 and rank == 4 else (0, 0)
    return (height, width)
