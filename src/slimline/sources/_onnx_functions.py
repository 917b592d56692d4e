"""ONNX operations without weights, as torch functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from slimline.sources._lift import Lift, Traced, Unliftable
from slimline.sources._onnx_layers import padded, paddings
from slimline.sources._onnx_operation import Operation, number_of, rule, scalars

CAST = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}

UNARY: dict[str, Callable[..., Any]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs,
    "Neg": torch.neg, "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign,
    "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh, "Softplus": F.softplus,
    "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish, "Not": torch.logical_not, "IsNaN": torch.isnan,
    "Det": torch.det, "NonZero": torch.nonzero,
}  # fmt: skip
BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt,
    "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
VARIADIC: dict[str, Callable[..., Any]] = {"Sum": torch.add, "Max": torch.maximum, "Min": torch.minimum}
REDUCED: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin, "ReduceLogSumExp": torch.logsumexp,
}  # fmt: skip


@rule(*(t for t in UNARY if t != "NonZero"))
def unary(op: Operation, lift: Lift) -> Any:
    return lift.call(UNARY[op.type], lift.tensor(op.need(0)))


@rule(*BINARY)
def binary(op: Operation, lift: Lift) -> Any:
    one, two = (lift.tensor(op.need(i)) for i in (0, 1))
    if isinstance(one, Traced) and isinstance(two, torch.Tensor):
        two = scalars((one, two))[1]
    return lift.call(BINARY[op.type], one, two)


@rule("Div")
def divide(op: Operation, lift: Lift) -> Any:
    one, two = (lift.tensor(op.need(i)) for i in (0, 1))
    rounding = {} if one.dtype.is_floating_point else {"rounding_mode": "trunc"}
    return lift.call(torch.div, *(scalars((one, two)) if isinstance(one, Traced) else (one, two)), **rounding)


@rule("Mod")
def modulo(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.fmod if op.attribute("fmod", 0) else torch.remainder, lift.tensor(op.need(0)), lift.tensor(op.need(1)))


@rule(*VARIADIC, "Mean")
def variadic(op: Operation, lift: Lift) -> Any:
    values = [lift.tensor(op.need(i)) for i in range(len(op.inputs))]
    total = functools.reduce(lambda a, b: lift.call(VARIADIC.get(op.type, torch.add), a, b), values)
    return lift.call(torch.div, total, float(len(values))) if op.type == "Mean" else total


@rule("Identity", "Dropout")
def identity(op: Operation, lift: Lift) -> Any:
    return op.need(0)


@rule("Cast", "CastLike")
def cast(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    kind = lift.tensor(op.need(1)).dtype if op.type == "CastLike" else CAST.get(int(op.attribute("to", 0)))
    if kind is None or kind in (torch.float16, torch.float64):
        raise Unliftable(f"it casts to {kind or 'another kind of number'}; Slimline starts from float32")
    return x if x.dtype == kind else lift.method("to", x, kind)


@rule("Clip")
def clip(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    low, high = (number_of(op.get(i), op.attribute(name)) for i, name in ((1, "min"), (2, "max")))
    if low == 0 and (high is None or high >= 3.4e38):
        return lift.call(torch.relu, x)
    return x if low is None and high is None else lift.call(torch.clamp, x, low, high)


@rule(
    "LeakyRelu",
    "Elu",
    "Celu",
    "Selu",
    "ThresholdedRelu",
    "HardSigmoid",
    "Gelu",
    "com.microsoft::Gelu",
    "Swish",
    "com.microsoft::FastGelu",
    "com.microsoft::QuickGelu",
    "Shrink",
)
def activation(op: Operation, lift: Lift) -> Any:
    x, alpha = lift.tensor(op.need(0)), op.attribute("alpha")
    if op.type == "LeakyRelu":
        return lift.call(F.leaky_relu, x, 0.01 if alpha is None else alpha)
    if op.type in ("Elu", "Celu"):
        return lift.call(F.elu if op.type == "Elu" else F.celu, x, 1.0 if alpha is None else alpha)
    if op.type == "Selu":
        if alpha is not None and abs(alpha - 1.6732632) > 1e-5:
            raise Unliftable("it is a Selu of another slope")
        return lift.call(F.selu, x)
    if op.type == "ThresholdedRelu":
        return lift.call(F.threshold, x, 1.0 if alpha is None else alpha, 0.0)
    if op.type == "HardSigmoid":
        alpha, beta = 0.2 if alpha is None else alpha, op.attribute("beta", 0.5)
        if abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6:
            return lift.call(F.hardsigmoid, x)
        return lift.call(torch.clamp, lift.call(torch.add, lift.call(torch.mul, x, alpha), beta), 0.0, 1.0)
    if op.type in ("Swish", "QuickGelu"):
        slope = (1.0 if op.type == "Swish" else 1.702) if alpha is None else alpha
        if slope == 1.0:
            return lift.call(F.silu, x)
        return lift.call(torch.mul, x, lift.call(torch.sigmoid, lift.call(torch.mul, x, slope)))
    if op.type == "Shrink":
        raise Unliftable("it shrinks")
    if op.type == "FastGelu" and op.get(1) is not None:
        x = lift.call(torch.add, x, op.get(1))
    return lift.call(F.gelu, x, approximate="tanh" if op.type == "FastGelu" or op.attribute("approximate", "none") == "tanh" else "none")


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Operation, lift: Lift) -> Any:
    if op.type == "Hardmax":
        raise Unliftable("it is a Hardmax")
    x, function = op.traced(0, lift), torch.softmax if op.type == "Softmax" else torch.log_softmax
    axis = int(op.attribute("axis", -1 if op.opset >= 13 else 1)) % x.ndim
    if op.opset >= 13 or axis == x.ndim - 1:
        return lift.call(function, x, axis)
    sizes = [lift.size(x, d) for d in range(axis, x.ndim)]  # before opset 13: over all dimensions from the axis on
    return lift.call(torch.unflatten, lift.call(function, lift.call(torch.flatten, x, axis), axis), axis, sizes)


@rule(*REDUCED, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd", "ReduceLogSum")
def reduce(op: Operation, lift: Lift) -> Any:
    x, axes, keep = lift.tensor(op.need(0)), op.plain_ints(1, lift, "axes"), bool(op.attribute("keepdims", 1))
    if not axes:
        if op.attribute("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.ndim))
    axes = [a % x.ndim for a in axes]
    if op.type == "ReduceProd":
        for axis in sorted(axes, reverse=True):
            x = lift.call(torch.prod, x, axis, keepdim=keep)
        return x
    if op.type in ("ReduceL1", "ReduceL2"):
        return lift.call(torch.linalg.vector_norm, x, 1 if op.type == "ReduceL1" else 2, axes, keep)
    if op.type in ("ReduceSumSquare", "ReduceLogSum"):
        y = lift.call(torch.sum, lift.call(torch.square, x) if op.type == "ReduceSumSquare" else x, axes, keepdim=keep)
        return y if op.type == "ReduceSumSquare" else lift.call(torch.log, y)
    return lift.call(REDUCED[op.type], x, axes, keepdim=keep)


@rule("ArgMax", "ArgMin")
def argument(op: Operation, lift: Lift) -> Any:
    if op.attribute("select_last_index", 0):
        raise Unliftable("it selects the last of equals")
    return lift.call(
        torch.argmax if op.type == "ArgMax" else torch.argmin, lift.tensor(op.need(0)), int(op.attribute("axis", 0)), bool(op.attribute("keepdims", 1))
    )


@rule("TopK")
def largest(op: Operation, lift: Lift) -> Any:
    count = (op.plain_ints(1, lift, "k") or [int(op.attribute("k", 1))])[0]
    return lift.call(torch.topk, op.traced(0, lift), count, int(op.attribute("axis", -1)), bool(op.attribute("largest", 1)), True)


@rule("Where")
def where(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.where, *(lift.tensor(op.need(i)) for i in range(3)))


@rule("CumSum")
def cumulate(op: Operation, lift: Lift) -> Any:
    if op.attribute("exclusive", 0) or op.attribute("reverse", 0):
        raise Unliftable("it sums up exclusively or backwards")
    return lift.call(torch.cumsum, lift.tensor(op.need(0)), int(lift.constant(op.get(1), "axis")))


@rule("Einsum")
def einsum(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.einsum, op.attribute("equation"), *(lift.tensor(op.need(i)) for i in range(len(op.inputs))))


@rule("Trilu")
def triangle(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.triu if op.attribute("upper", 1) else torch.tril, lift.tensor(op.need(0)), int(number_of(op.get(1), 0) or 0))


@rule("OneHot")
def one_hot(op: Operation, lift: Lift) -> Any:
    off, on = lift.constant(op.get(2), "values").tolist()
    if (off, on) != (0, 1) or int(op.attribute("axis", -1)) != -1:
        raise Unliftable("it marks with other values than 0 and 1, or along another axis than the last")
    return lift.method("to", lift.call(F.one_hot, op.traced(0, lift), int(number_of(op.get(1)) or 0)), lift.constant(op.get(2), "values").dtype)


@rule("Pad")
def pad(op: Operation, lift: Lift) -> Any:
    x, mode = op.traced(0, lift), op.attribute("mode", "constant")
    widths, axes = op.plain_ints(1, lift, "pads") or [], op.plain_ints(3, lift) or list(range(x.ndim))
    fill = number_of(op.get(2), op.attribute("value", 0.0))
    before, after = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(axes):
        before[axis], after[axis] = widths[k], widths[len(axes) + k]
    if mode == "constant":
        first = next((d for d in range(x.ndim) if before[d] or after[d]), x.ndim)
        return x if first == x.ndim else padded(lift, x, before[first:], after[first:], fill or 0.0)
    along = [d for d in range(x.ndim) if before[d] or after[d]]
    extra = max(0, 2 - min(along, default=2))  # PyTorch pads what comes after samples and channels
    if 0 in along or mode not in ("reflect", "edge", "wrap") or not 1 <= x.ndim + extra - 2 <= 3:
        raise Unliftable(f"it pads in mode {mode} along {along}")
    flat = [w for d in range(x.ndim - 1, 1 - extra, -1) for w in (before[d], after[d])]
    wide = lift.call(torch.unsqueeze, x, 1) if extra else x
    y = lift.call(F.pad, wide, flat, {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])
    return lift.call(torch.squeeze, y, 1) if extra else y


@rule("MaxPool", "AveragePool", "LpPool")
def pool(op: Operation, lift: Lift) -> Any:
    x, kernel = op.traced(0, lift), [int(k) for k in op.attribute("kernel_shape")]
    count = len(kernel)
    if op.type == "LpPool" or not 1 <= count <= 3 or op.outputs > 1:
        raise Unliftable("it is a pooling without a counterpart")
    stride, dilation, ceil = op.attribute("strides") or [1] * count, op.attribute("dilations") or [1] * count, bool(op.attribute("ceil_mode", 0))
    before, after = paddings(op, kernel, stride, dilation, x.shape[2:])
    small = before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True))
    if op.type == "MaxPool":
        if not small:
            x, before = padded(lift, x, before, after, float("-inf")), [0] * count
        return lift.call((F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1], x, tuple(kernel), tuple(stride), tuple(before), tuple(dilation), ceil)
    if any(d != 1 for d in dilation):
        raise Unliftable("it averages with gaps")
    included, function = bool(op.attribute("count_include_pad", 0)), (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    if small:
        return lift.call(function, x, tuple(kernel), tuple(stride), tuple(before), ceil, included)
    if included or ceil:
        raise Unliftable("it averages over uneven paddings")
    widths = {"kernel_size": tuple(kernel), "stride": tuple(stride)}
    ones = padded(lift, lift.call(torch.ones_like, x), before, after)
    return lift.call(torch.div, lift.call(function, padded(lift, x, before, after), **widths), lift.call(function, ones, **widths))


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(op: Operation, lift: Lift) -> Any:
    x = op.traced(0, lift)
    axes = list(range(2, x.ndim))
    return lift.call(torch.mean if op.type == "GlobalAveragePool" else torch.amax, x, axes, keepdim=True)


@rule("LRN")
def local_response(op: Operation, lift: Lift) -> Any:
    return lift.call(
        F.local_response_norm, op.traced(0, lift), int(op.attribute("size")), op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0)
    )


@rule("LpNormalization")
def normalize(op: Operation, lift: Lift) -> Any:
    return lift.call(F.normalize, op.traced(0, lift), float(op.attribute("p", 2)), int(op.attribute("axis", -1)), 1e-30)


@rule("DepthToSpace", "SpaceToDepth")
def shuffle(op: Operation, lift: Lift) -> Any:
    x, block = op.traced(0, lift), int(op.attribute("blocksize"))
    if op.type == "DepthToSpace" and op.attribute("mode", "DCR") == "CRD":
        return lift.call(F.pixel_shuffle, x, block)
    if op.type == "DepthToSpace":
        parts = lift.call(torch.unflatten, x, 1, (block, block, -1))
        moved = lift.call(torch.permute, parts, (0, 3, 4, 1, 5, 2))
        return lift.call(torch.flatten, lift.call(torch.flatten, moved, 4, 5), 2, 3)
    parts = lift.call(torch.unflatten, lift.call(torch.unflatten, x, 3, (-1, block)), 2, (-1, block))
    return lift.call(torch.flatten, lift.call(torch.permute, parts, (0, 3, 5, 1, 2, 4)), 1, 3)


@rule("Resize", "Upsample")
def resize(op: Operation, lift: Lift) -> Any:
    x, mode = op.traced(0, lift), op.attribute("mode", "nearest")
    how = op.attribute("coordinate_transformation_mode", "half_pixel" if op.type == "Resize" and op.opset > 10 else "asymmetric")
    sizes = op.plain_ints(3, lift) if op.type == "Resize" and op.opset > 10 and op.get(3) is not None else None
    if sizes is None:
        place = 2 if op.type == "Resize" and op.opset > 10 else 1
        found = op.get(place)
        scales = op.attribute("scales") if found is None else lift.constant(found, "scales").tolist()
        sizes = [int(n * s) for n, s in zip(x.shape[-len(scales) :], scales, strict=True)]
        sizes[:2] = list(x.shape[:2]) if len(scales) == x.ndim and list(scales[:2]) == [1.0, 1.0] else sizes[:2]
    axes = [a % x.ndim for a in op.attribute("axes") or range(x.ndim)]
    wanted = dict(zip(axes, sizes, strict=True))
    if any(wanted.get(d, x.shape[d]) != x.shape[d] for d in (0, 1)) or op.attribute("antialias", 0):
        raise Unliftable("it resizes more than the spatial dimensions, or with antialiasing")
    size = [wanted.get(d, x.shape[d]) for d in range(2, x.ndim)]
    if mode == "nearest":
        whole = all(s % n == 0 for s, n in zip(size, x.shape[2:], strict=True))
        if not whole and not (how == "asymmetric" and op.attribute("nearest_mode", "round_prefer_floor") == "floor"):
            raise Unliftable(f"it picks neighbours {how}, {op.attribute('nearest_mode', 'round_prefer_floor')}")
        return lift.call(F.interpolate, x, size=size, mode="nearest")
    kind = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}.get((mode, x.ndim))
    if kind is None or how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Unliftable(f"it interpolates {mode}, {how}")
    return lift.call(F.interpolate, x, size=size, mode=kind, align_corners=how == "align_corners")
