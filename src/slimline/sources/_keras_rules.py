"""Keras layers as torch layers and functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slimline.sources._keras_layer import Image, Layer, dimension, first, image, only, plain, rule, together
from slimline.sources._lift import Lift, Traced, Unliftable

ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": F.softplus, "softsign": F.softsign, "elu": F.elu,
    "selu": F.selu, "gelu": F.gelu, "swish": F.silu, "silu": F.silu, "exponential": torch.exp, "relu6": F.relu6, "mish": F.mish,
    "hard_swish": F.hardswish, "hard_silu": F.hardswish,
}  # fmt: skip
MERGES: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Average": torch.add, "Subtract": torch.sub, "Multiply": torch.mul, "Maximum": torch.maximum, "Minimum": torch.minimum,
}  # fmt: skip
SIMPLE_CONVOLUTIONS = {"Conv1D": 1, "Conv2D": 2, "Conv3D": 3}
CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def activate(layer: Layer, lift: Lift, value: Any, name: Any) -> Any:
    """The value after an activation that a configuration names."""
    if isinstance(name, dict):
        name = name.get("config") if name.get("class_name") == "function" else name.get("class_name", "")
    name = "linear" if name is None else name
    if name == "linear":
        return value
    bare, seconds = (value.value, True) if isinstance(value, Image) else (value, False)
    if name in ("softmax", "log_softmax"):
        out = lift.call(torch.softmax if name == "softmax" else torch.log_softmax, bare, dimension(-1, bare.ndim, seconds))
    elif name == "leaky_relu":
        out = lift.call(F.leaky_relu, bare, 0.2)
    elif name == "hard_sigmoid":
        out = (
            lift.call(F.hardsigmoid, bare)
            if layer.version >= 3
            else lift.call(torch.clamp, lift.call(torch.add, lift.call(torch.mul, bare, 0.2), 0.5), 0.0, 1.0)
        )
    elif isinstance(name, str) and name in ACTIVATIONS:
        out = lift.call(ACTIVATIONS[name], bare)
    else:
        raise Unliftable(f"its activation {str(name)[:60]} is not known")
    return Image(out) if seconds else out


def _owned(lift: Lift, tensor: torch.Tensor, form: str, make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Parameter:
    return lift.parameter((id(tensor), form), lambda: make(tensor))


@rule("InputLayer", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
      "ActivityRegularization", "Identity")  # fmt: skip
def nothing(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    return only(values)


@rule("Activation")
def activation(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    return activate(layer, lift, only(values), layer.get("activation"))


@rule("ReLU", "LeakyReLU", "ELU", "Softmax", "PReLU")
def activation_layer(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    value = only(values)
    bare, seconds = (value.value, True) if isinstance(value, Image) else (value, False)
    if layer.kind == "Softmax":
        out = lift.call(torch.softmax, bare, dimension(int(layer.get("axis", -1)), bare.ndim, seconds))
    elif layer.kind == "ELU":
        out = lift.call(F.elu, bare, float(layer.get("alpha", 1.0)))
    elif layer.kind == "LeakyReLU":
        out = lift.call(F.leaky_relu, bare, float(layer.get("negative_slope", layer.get("alpha", 0.3))))
    elif layer.kind == "PReLU":
        (slope,) = layer.weights()
        if slope.numel() != slope.shape[-1]:
            raise Unliftable("it has a slope of its own for every place")
        module = nn.PReLU(slope.numel())
        module.weight = _owned(lift, slope, "vector", lambda t: t.reshape(-1))
        return image(lift.module(layer.name, module, first(lift, value)))
    else:
        top, leak, threshold = layer.get("max_value"), float(layer.get("negative_slope", 0.0)), float(layer.get("threshold", 0.0))
        if threshold:
            raise Unliftable("it has a threshold")
        out = lift.call(F.leaky_relu, bare, leak) if leak else lift.call(torch.relu, bare)
        out = out if top is None else lift.call(torch.clamp, out, None if leak else 0.0, float(top))
    return Image(out) if seconds else out


@rule("Dense")
def dense(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    weights = layer.weights()
    module = nn.utils.skip_init(nn.Linear, *weights[0].shape, bias=len(weights) > 1)
    module.weight = _owned(lift, weights[0], "linear", lambda t: t.T)
    if len(weights) > 1:
        module.bias = _owned(lift, weights[1], "same", lambda t: t)
    return activate(layer, lift, lift.module(layer.name, module, plain(lift, only(values))), layer.get("activation"))


@rule("TimeDistributed")
def time_distributed(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    inner = layer.get("layer", {})
    if inner.get("class_name") != "Dense":
        raise Unliftable(f"it repeats a {inner.get('class_name')}")
    places = {p.removeprefix("layer/"): t for p, t in layer.places.items()}
    return dense(Layer("Dense", layer.name, inner["config"], places, layer.listed, {}, layer.version), lift, values)


@rule("Embedding")
def embedding(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    if layer.get("mask_zero", False):
        raise Unliftable("it masks the index zero, which later layers heed")
    (table,) = layer.weights()
    module = nn.utils.skip_init(nn.Embedding, *table.shape)
    module.weight = _owned(lift, table, "same", lambda t: t)
    return lift.module(layer.name, module, plain(lift, only(values)))


# -- convolutions and pooling ------------------------------------------------------------------------


def _same(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[list[int], list[int]]:
    total = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    return [t // 2 for t in total], [t - t // 2 for t in total]


def _pads(layer: Layer, x: Traced, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[list[int], list[int]]:
    how = layer.get("padding", "valid")
    if how == "same":
        return _same(x.shape[2:], kernel, stride, dilation)
    if how == "causal":
        return [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)], [0] * len(kernel)
    if how != "valid":
        raise Unliftable(f"it pads {how}")
    return [0] * len(kernel), [0] * len(kernel)


def padded(lift: Lift, x: Traced, before: list[int], after: list[int], value: float = 0.0) -> Traced:
    widths = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
    found: Traced = x if not any(widths) else lift.call(F.pad, x, widths, value=value)
    return found


def _convolve(lift: Lift, layer: Layer, name: str, x: Traced, weight: torch.Tensor, bias: torch.Tensor | None, groups: int, stride: tuple[int, ...]) -> Any:
    """``weight``: ``[O, I / groups, ...]`` as torch has it."""
    kernel = tuple(weight.shape[2:])
    dilation = layer.pair("dilation_rate", len(kernel)) if any(k > 1 for k in kernel) else (1,) * len(kernel)
    before, after = _pads(layer, x, kernel, stride, dilation)
    even = before == after
    x = x if even else padded(lift, x, before, after)
    module = nn.utils.skip_init(
        CONVOLUTIONS[len(kernel)], weight.shape[1] * groups, weight.shape[0], kernel, stride=stride, padding=tuple(before) if even else 0,
        dilation=dilation, groups=groups, bias=bias is not None,
    )  # fmt: skip
    module.weight = _owned(lift, weight, "same", lambda t: t)
    if bias is not None:
        module.bias = _owned(lift, bias, "same", lambda t: t)
    return lift.module(name, module, x)


def _forward(lift: Lift, kernel: torch.Tensor) -> torch.Tensor:
    """``[..., I, O]`` -> ``[O, I, ...]``, made once per stored tensor."""
    key = (id(kernel), "convolution")
    if key not in lift.shared:
        lift.shared[key] = kernel.permute(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2)).contiguous()
    found: torch.Tensor = lift.shared[key]
    return found


@rule(*SIMPLE_CONVOLUTIONS)
def convolution(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    weights, count = layer.weights(), SIMPLE_CONVOLUTIONS[layer.kind]
    x = first(lift, only(values), layer.channels_last)
    bias = weights[1] if len(weights) > 1 else None
    y = _convolve(lift, layer, layer.name, x, _forward(lift, weights[0]), bias, int(layer.get("groups", 1)), layer.pair("strides", count))
    return activate(layer, lift, image(y, layer.channels_last), layer.get("activation"))


def _depthwise(lift: Lift, kernel: torch.Tensor) -> torch.Tensor:
    """``[..., C, M]`` -> ``[C * M, 1, ...]``, made once per stored tensor."""
    key = (id(kernel), "depthwise")
    if key not in lift.shared:
        lift.shared[key] = kernel.permute(kernel.ndim - 2, kernel.ndim - 1, *range(kernel.ndim - 2)).flatten(0, 1).unsqueeze(1).contiguous()
    found: torch.Tensor = lift.shared[key]
    return found


@rule("DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")
def depthwise(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    weights, count = layer.weights(), int(layer.kind[-2])
    x, separable = first(lift, only(values), layer.channels_last), layer.kind.startswith("Separable")
    bias = weights[-1] if len(weights) > (2 if separable else 1) else None
    name = f"{layer.name}.depthwise" if separable else layer.name
    y = _convolve(lift, layer, name, x, _depthwise(lift, weights[0]), None if separable else bias, weights[0].shape[-2], layer.pair("strides", count))
    if separable:
        y = _convolve(lift, layer, f"{layer.name}.pointwise", y, _forward(lift, weights[1]), bias, 1, (1,) * count)
    return activate(layer, lift, image(y, layer.channels_last), layer.get("activation"))


@rule("Conv1DTranspose", "Conv2DTranspose")
def transposed(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    weights, count = layer.weights(), int(layer.kind[4])
    stride, kernel = layer.pair("strides", count), tuple(weights[0].shape[:count])
    if any(d != 1 for d in layer.pair("dilation_rate", count)) or layer.get("output_padding") is not None:
        raise Unliftable("it is a transposed convolution with gaps or an output padding")
    x = first(lift, only(values), layer.channels_last)
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[count]
    surplus = [k - s for k, s in zip(kernel, stride, strict=True)]
    short = [max(-t, 0) for t in surplus]  # where the stride leaves gaps, the last of them counts too
    module = nn.utils.skip_init(kind, weights[0].shape[-1], weights[0].shape[-2], kernel, stride=stride, output_padding=tuple(short), bias=len(weights) > 1)
    module.weight = _owned(lift, weights[0], "transposed", lambda t: t.permute(count + 1, count, *range(count)))
    if len(weights) > 1:
        module.bias = _owned(lift, weights[1], "same", lambda t: t)
    y = lift.module(layer.name, module, x)
    if layer.get("padding", "valid") == "same":
        cut = [max(t, 0) // 2 for t in surplus]
        y = padded(lift, y, [-c for c in cut], [-(max(t, 0) - c) for t, c in zip(surplus, cut, strict=True)])
    return activate(layer, lift, image(y, layer.channels_last), layer.get("activation"))


@rule("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D")
def pool(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    count = int(layer.kind[-2])
    kernel = layer.pair("pool_size", count, 2)
    stride = layer.pair("strides", count) if layer.get("strides") is not None else kernel
    x = first(lift, only(values), layer.channels_last)
    before, after = _pads(layer, x, kernel, stride, (1,) * count)
    if layer.kind.startswith("Max"):
        function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
        y = lift.call(function, padded(lift, x, before, after, float("-inf")), kernel, stride)
    else:
        function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
        y = lift.call(function, padded(lift, x, before, after), kernel, stride)
        if any(before) or any(after):  # what was added does not count
            y = lift.call(torch.div, y, lift.call(function, padded(lift, lift.call(torch.ones_like, x), before, after), kernel, stride))
    return image(y, layer.channels_last)


@rule(*(f"Global{k}Pooling{d}D" for k in ("Max", "Average") for d in (1, 2, 3)))
def global_pool(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    x, keep = first(lift, only(values), layer.channels_last), bool(layer.get("keepdims", False))
    y = lift.call(torch.mean if "Average" in layer.kind else torch.amax, x, list(range(2, x.ndim)), keepdim=keep)
    return image(y, layer.channels_last) if keep else y


@rule("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D")
def zero_padding(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    count, cut = int(layer.kind[-2]), layer.kind.startswith("Crop")
    given = layer.get("cropping" if cut else "padding", 1)
    given = [given] * count if isinstance(given, int) else [given] if count == 1 and not isinstance(given[0], list) else given
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in given]
    sign = -1 if cut else 1
    x = first(lift, only(values), layer.channels_last)
    return image(padded(lift, x, [sign * int(p[0]) for p in pairs], [sign * int(p[1]) for p in pairs]), layer.channels_last)


@rule("UpSampling1D", "UpSampling2D")
def upsample(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    count, how = int(layer.kind[-2]), layer.get("interpolation", "nearest")
    if how not in ("nearest", "bilinear"):
        raise Unliftable(f"it interpolates {how}")
    x = first(lift, only(values), layer.channels_last)
    size = [n * s for n, s in zip(x.shape[2:], layer.pair("size", count, 2), strict=True)]
    smooth = {"mode": "bilinear", "align_corners": False} if how == "bilinear" else {"mode": "nearest"}
    return image(lift.call(F.interpolate, x, size=size, **smooth), layer.channels_last)


# -- normalisation ---------------------------------------------------------------------------------------


@rule("BatchNormalization")
def batch_norm(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    value = only(values)
    rank = (value.value if isinstance(value, Image) else value).ndim
    axis = layer.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else int(axis)
    last = axis % rank == rank - 1
    if not last and axis != 1:
        raise Unliftable(f"it normalises axis {axis}")
    x, weights = first(lift, value, last), layer.weights()
    scaled, centred = bool(layer.get("scale", True)), bool(layer.get("center", True))
    mean, variance = weights[-2:]
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    module = kind(mean.numel(), eps=float(layer.get("epsilon", 1e-3)))
    module.running_mean, module.running_var = mean.clone().float(), variance.clone().float()
    if scaled:
        module.weight = _owned(lift, weights[0], "same", lambda t: t)
    if centred:
        module.bias = _owned(lift, weights[1 if scaled else 0], "same", lambda t: t)
    return image(lift.module(layer.name, module, x), last)


@rule("LayerNormalization")
def layer_norm(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    x, weights = plain(lift, only(values)), layer.weights()
    axis = layer.get("axis", -1)
    axis = axis if isinstance(axis, int) else axis[0] if len(axis) == 1 else None
    if axis is None or axis % x.ndim != x.ndim - 1 or layer.get("rms_scaling", False) or not layer.get("scale", True):
        raise Unliftable("it normalises over other axes than the last, or without a scale")
    module = nn.LayerNorm(x.shape[-1], eps=float(layer.get("epsilon", 1e-3)), bias=len(weights) > 1)
    module.weight = _owned(lift, weights[0], "same", lambda t: t)
    if len(weights) > 1:
        module.bias = _owned(lift, weights[1], "same", lambda t: t)
    return lift.module(layer.name, module, x)


@rule("Rescaling")
def rescale(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    scale, offset = layer.get("scale", 1.0), layer.get("offset", 0.0)
    if not isinstance(scale, int | float) or not isinstance(offset, int | float):
        raise Unliftable("it has a scale for every channel")
    return lift.call(torch.add, lift.call(torch.mul, plain(lift, only(values)), float(scale)), float(offset))


# -- merging and shapes ------------------------------------------------------------------------------------


@rule(*MERGES)
def merge(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    bare, seconds = together(lift, values)
    rank = max(b.ndim for b in bare)
    bare = [b if b.ndim == rank else lift.call(torch.reshape, b, [lift.size(b, 0), *[1] * (rank - b.ndim), *b.shape[1:]]) for b in bare]
    out = functools.reduce(lambda a, b: lift.call(MERGES[layer.kind], a, b), bare)
    out = lift.call(torch.div, out, float(len(bare))) if layer.kind == "Average" else out
    return Image(out) if seconds else out


@rule("Concatenate")
def concatenate(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    bare, seconds = together(lift, values)
    out = lift.call(torch.cat, bare, dimension(int(layer.get("axis", -1)), bare[0].ndim, seconds))
    return Image(out) if seconds else out


@rule("Flatten")
def flatten(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    x = plain(lift, only(values))
    return lift.call(torch.unsqueeze, x, 1) if x.ndim == 1 else lift.call(torch.flatten, x, 1)


@rule("Reshape")
def reshape(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    x = lift.call(torch.flatten, plain(lift, only(values)), 1)
    wanted = [int(t) for t in layer.get("target_shape", [-1])]
    if len(wanted) == 1:
        return x
    free = wanted.index(-1) if -1 in wanted else len(wanted) - 1
    return lift.call(torch.unflatten, x, 1, [-1 if d == free else t for d, t in enumerate(wanted)])


@rule("Permute")
def permute(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    return lift.call(torch.permute, plain(lift, only(values)), (0, *(int(d) for d in layer.get("dims"))))


@rule("RepeatVector")
def repeat(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    return lift.method("expand", lift.call(torch.unsqueeze, plain(lift, only(values)), 1), -1, int(layer.get("n")), -1)
