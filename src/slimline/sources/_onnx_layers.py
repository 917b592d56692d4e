"""ONNX operations with weights, as torch layers: what has sites, is pruned and trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slimline.sources._lift import Lift, Traced, Unliftable, Value
from slimline.sources._onnx_operation import Operation, rule

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def paddings(op: Operation, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int]) -> tuple[list[int], list[int]]:
    """What is added before and after each spatial dimension."""
    count = len(kernel)
    how = op.attribute("auto_pad", "NOTSET")
    if how in ("", "NOTSET"):
        pads = list(op.attribute("pads") or [0] * 2 * count)
        return pads[:count], pads[count:]
    if how == "VALID":
        return [0] * count, [0] * count
    total = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if how == "SAME_UPPER" else (large, small)


def padded(lift: Lift, x: Traced, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Traced:
    """With constant rows around the last dimensions."""
    if not any(before) and not any(after):
        return x
    widths = [w for pair in zip(reversed(before), reversed(after), strict=True) for w in pair]
    found: Traced = lift.call(F.pad, x, widths, value=value)
    return found


def _parameters(
    lift: Lift, op: Operation, module: nn.Module, weight: Value, bias: Value | None, form: str, make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    stored = lift.constant(weight, "weight")
    module.weight = lift.parameter((id(stored), form), lambda: make(stored))
    if bias is not None:
        vector = lift.constant(bias, "bias")
        module.bias = lift.parameter((id(vector), "vector"), lambda: vector.reshape(-1))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@rule("Conv")
def convolution(op: Operation, lift: Lift) -> Any:
    x, weight, bias = op.traced(0, lift), op.need(1), op.get(2)
    kernel = [int(k) for k in weight.shape[2:]]  # type: ignore[union-attr]  # a Sizes is no kernel
    count = len(kernel)
    if count not in CONVOLUTIONS or x.ndim != count + 2:
        raise Unliftable(f"it is a convolution over {count} dimensions")
    stride, dilation = op.attribute("strides") or [1] * count, op.attribute("dilations") or [1] * count
    before, after = paddings(op, kernel, stride, dilation, x.shape[2:])
    groups = int(op.attribute("group", 1))
    even = before == after
    if not even:
        x = padded(lift, x, before, after)
    if not isinstance(weight, torch.Tensor) or (bias is not None and not isinstance(bias, torch.Tensor)):
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[count]
        return lift.call(function, x, weight, bias, tuple(stride), tuple(before if even else [0] * count), tuple(dilation), groups)
    _, ins, *_ = weight.shape
    with torch.device("meta"):
        layer = CONVOLUTIONS[count](
            ins * groups, weight.shape[0], tuple(kernel), tuple(stride), tuple(before) if even else 0, tuple(dilation), groups, bias is not None
        )
    _parameters(lift, op, layer, weight, bias, "same", _same)
    return lift.module(op.path(weight), layer, x)


@rule("ConvTranspose")
def transposed_convolution(op: Operation, lift: Lift) -> Any:
    x, weight, bias = op.traced(0, lift), lift.constant(op.need(1), "weight"), op.get(2)
    kernel = list(weight.shape[2:])
    count = len(kernel)
    if count not in TRANSPOSED or x.ndim != count + 2:
        raise Unliftable(f"it is a transposed convolution over {count} dimensions")
    stride, dilation = op.attribute("strides") or [1] * count, op.attribute("dilations") or [1] * count
    extra, groups = list(op.attribute("output_padding") or [0] * count), int(op.attribute("group", 1))
    how, wanted = op.attribute("auto_pad", "NOTSET"), op.attribute("output_shape")
    if wanted is not None or how in ("SAME_UPPER", "SAME_LOWER"):
        target = list(wanted)[-count:] if wanted is not None else [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        total = [s * (n - 1) + e + d * (k - 1) + 1 - t for n, s, e, d, k, t in zip(x.shape[2:], stride, extra, dilation, kernel, target, strict=True)]
        extra = [e + max(-t, 0) for e, t in zip(extra, total, strict=True)]
        total = [max(t, 0) for t in total]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (large, small) if how == "SAME_LOWER" else (small, large)
    else:
        pads = list(op.attribute("pads") or [0] * 2 * count)
        before, after = pads[:count], pads[count:]
    even = before == after
    with torch.device("meta"):
        layer = TRANSPOSED[count](
            weight.shape[0],
            weight.shape[1] * groups,
            tuple(kernel),
            tuple(stride),
            tuple(before) if even else 0,
            tuple(extra),
            groups,
            bias is not None,
            tuple(dilation),
        )
    _parameters(lift, op, layer, weight, bias, "same", _same)
    y = lift.module(op.path(op.get(1)), layer, x)
    return y if even else padded(lift, y, [-b for b in before], [-a for a in after])


@rule("MatMul")
def product(op: Operation, lift: Lift) -> Any:
    x, weight = op.need(0), op.need(1)
    if isinstance(x, Traced) and isinstance(weight, torch.Tensor) and weight.ndim == 2 and x.ndim >= 2:
        return _linear(op, lift, x, weight, None, transposed=False)
    return lift.call(torch.matmul, lift.tensor(x), lift.tensor(weight))


@rule("Gemm")
def gemm(op: Operation, lift: Lift) -> Any:
    x, weight, bias = op.need(0), op.need(1), op.get(2)
    alpha, beta = float(op.attribute("alpha", 1.0)), float(op.attribute("beta", 1.0))
    if isinstance(x, Traced) and op.attribute("transA", 0):
        x = lift.call(torch.transpose, x, 0, 1)
    vector = isinstance(bias, torch.Tensor) and bias.numel() == bias.shape[-1:].numel()
    if isinstance(x, Traced) and isinstance(weight, torch.Tensor) and (bias is None or vector):
        rows = weight.shape[0 if op.attribute("transB", 0) else 1]
        if bias is not None and bias.numel() in (1, rows):  # type: ignore[union-attr]  # a vector
            return _linear(op, lift, x, weight, bias, transposed=bool(op.attribute("transB", 0)), alpha=alpha, beta=beta, rows=rows)
        if bias is None:
            return _linear(op, lift, x, weight, None, transposed=bool(op.attribute("transB", 0)), alpha=alpha)
    if op.attribute("transB", 0):
        weight = lift.call(torch.transpose, weight, 0, 1)
    y = lift.call(torch.matmul, x, weight)
    y = y if alpha == 1.0 else lift.call(torch.mul, y, alpha)
    return y if bias is None else lift.call(torch.add, y, bias if beta == 1.0 else lift.call(torch.mul, bias, beta))


@rule("slimline::Linear")
def fused_linear(op: Operation, lift: Lift) -> Any:
    """A product with a constant matrix and the vector that is added to it."""
    return _linear(op, lift, op.traced(0, lift), lift.constant(op.need(1), "weight"), op.get(2), transposed=False)


def _linear(
    op: Operation, lift: Lift, x: Traced, weight: torch.Tensor, bias: Value | None, *, transposed: bool, alpha: float = 1.0, beta: float = 1.0, rows: int = 0
) -> Any:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1 if transposed else 0], weight.shape[0 if transposed else 1], bias is not None)
    layer.weight = lift.parameter((id(weight), "linear", transposed, alpha), lambda: (weight if transposed else weight.T) * alpha)
    if bias is not None:
        vector = lift.constant(bias, "bias").reshape(-1)
        layer.bias = lift.parameter((id(bias), "bias", beta), lambda: vector.expand(layer.out_features) * beta)
    return lift.module(op.path(weight), layer, x)


@rule("BatchNormalization")
def batch_norm(op: Operation, lift: Lift) -> Any:
    x = op.traced(0, lift)
    scale, shift, mean, variance = (lift.constant(op.get(i), "statistics") for i in (1, 2, 3, 4))
    if op.attribute("training_mode", 0):
        raise Unliftable("it is a batch norm in training mode")
    if x.ndim not in BATCH_NORMS:
        raise Unliftable(f"it is a batch norm over {x.ndim} dimensions")
    with torch.device("meta"):
        layer = BATCH_NORMS[x.ndim](scale.numel(), eps=float(op.attribute("epsilon", 1e-5)))
    _parameters(lift, op, layer, scale, shift, "vector", lambda t: t.reshape(-1))
    layer.running_mean, layer.running_var = mean.detach().clone().float(), variance.detach().clone().float()
    layer.num_batches_tracked = torch.tensor(0)
    return lift.module(op.path(scale), layer, x)


@rule("InstanceNormalization")
def instance_norm(op: Operation, lift: Lift) -> Any:
    x, scale = op.traced(0, lift), lift.constant(op.get(1), "scale")
    if x.ndim not in INSTANCE_NORMS:
        raise Unliftable(f"it is an instance norm over {x.ndim} dimensions")
    layer = INSTANCE_NORMS[x.ndim](scale.numel(), eps=float(op.attribute("epsilon", 1e-5)), affine=True)
    _parameters(lift, op, layer, scale, op.get(2), "vector", _same)
    return lift.module(op.path(scale), layer, x)


@rule("GroupNormalization")
def group_norm(op: Operation, lift: Lift) -> Any:
    x, scale, shift = op.traced(0, lift), lift.constant(op.get(1), "scale"), lift.constant(op.get(2), "bias")
    groups = int(op.attribute("num_groups"))
    width = x.shape[1]
    layer = nn.GroupNorm(groups, width, eps=float(op.attribute("epsilon", 1e-5)))
    if scale.numel() != width:  # before opset 21: one per group
        scale, shift = scale.repeat_interleave(width // groups), shift.repeat_interleave(width // groups)
    _parameters(lift, op, layer, scale, shift, "vector", _same)
    return lift.module(op.path(op.get(1)), layer, x)


@rule("LayerNormalization")
def layer_norm(op: Operation, lift: Lift) -> Any:
    x, scale = op.traced(0, lift), lift.constant(op.get(1), "scale")
    axis = int(op.attribute("axis", -1)) % x.ndim
    shape = list(x.shape[axis:])
    if list(scale.shape) != shape:
        raise Unliftable(f"it normalises over {shape} with a scale of {list(scale.shape)}")
    layer = nn.LayerNorm(shape, eps=float(op.attribute("epsilon", 1e-5)), bias=op.get(2) is not None)
    layer.weight = lift.parameter((id(scale), "same"), lambda: scale)
    if op.get(2) is not None:
        shift = lift.constant(op.get(2), "bias")
        layer.bias = lift.parameter((id(shift), "same"), lambda: shift.reshape(shape))
    return lift.module(op.path(op.get(1)), layer, x)


@rule("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft::SimplifiedLayerNormalization")
def rms_norm(op: Operation, lift: Lift) -> Any:
    x, scale = op.traced(0, lift), lift.constant(op.get(1), "scale")
    shape = list(x.shape[int(op.attribute("axis", -1)) % x.ndim :])
    layer = nn.RMSNorm(shape, eps=float(op.attribute("epsilon", 1e-5)))
    layer.weight = lift.parameter((id(scale), "same"), lambda: scale.reshape(shape))
    return lift.module(op.path(op.get(1)), layer, x)


@rule("PRelu")
def prelu(op: Operation, lift: Lift) -> Any:
    x, slope = op.traced(0, lift), lift.constant(op.get(1), "slope")
    wide = [d for d, n in enumerate(slope.shape) if n > 1]
    channels = len(wide) == 1 and (slope.ndim - wide[0] == x.ndim - 1 or (op.opset < 7 and slope.numel() == x.shape[1]))
    if slope.numel() == 1 or channels:
        layer = nn.PReLU(slope.numel())
        layer.weight = lift.parameter((id(slope), "vector"), lambda: slope.reshape(-1))
        return lift.module(op.path(op.get(1)), layer, x)
    return lift.call(torch.where, lift.call(torch.lt, x, 0), lift.call(torch.mul, x, slope), x)


def embedding(op: Operation, lift: Lift, table: torch.Tensor, index: Traced) -> Any:
    """Rows of a constant matrix."""
    with torch.device("meta"):
        layer = nn.Embedding(*table.shape)
    layer.weight = lift.parameter((id(table), "same"), lambda: table)
    return lift.module(op.path(table), layer, index)


# -- recurrent layers --------------------------------------------------------------------------------


def _gates(matrix: torch.Tensor, order: Sequence[int], hidden: int) -> torch.Tensor:
    """Rows in torch's order of gates."""
    return torch.cat([matrix[g * hidden : (g + 1) * hidden] for g in order])


def _state(lift: Lift, value: Value | None) -> Value | None:
    """A first state, or ``None`` where it is zero."""
    return None if value is None or (isinstance(value, torch.Tensor) and not value.any()) else lift.tensor(value)


@rule("LSTM", "GRU", "RNN")
def recurrent(op: Operation, lift: Lift) -> Any:
    x = op.traced(0, lift)
    wide, deep = lift.constant(op.get(1), "weight"), lift.constant(op.get(2), "weight")
    ways, hidden, way = wide.shape[0], deep.shape[2], op.attribute("direction", "forward")
    usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[op.type] * ways
    given = op.attribute("activations") or usual
    odd = [
        what
        for what, found in (
            ("another activation", [a.lower() for a in given] != [u.lower() for u in usual] and not (op.type == "RNN" and set(given) == {"Relu"})),
            ("clipping", op.attribute("clip")),
            ("coupled gates", op.attribute("input_forget", 0)),
            ("the batch first", op.attribute("layout", 0)),
            ("peepholes", op.type == "LSTM" and op.get(7) is not None),
            ("a reset gate applied before the product", op.type == "GRU" and not op.attribute("linear_before_reset", 0)),
            ("sequence lengths", op.get(4) is not None and not _full(op.get(4), x)),
        )
        if found
    ]
    if odd:
        raise Unliftable(f"it has {', '.join(odd)}")
    kind: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[op.type]
    extra = {"nonlinearity": "relu"} if set(given) == {"Relu"} else {}
    layer = kind(wide.shape[2], hidden, bidirectional=ways == 2, bias=op.get(3) is not None, **extra)
    order = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}[op.type]  # ONNX: i o f c, z r h; torch: i f g o, r z n
    with torch.no_grad():
        for k, suffix in enumerate(("", "_reverse")[:ways]):
            getattr(layer, f"weight_ih_l0{suffix}").copy_(_gates(wide[k], order, hidden))
            getattr(layer, f"weight_hh_l0{suffix}").copy_(_gates(deep[k], order, hidden))
            if op.get(3) is not None:
                both = lift.constant(op.get(3), "bias")[k]
                getattr(layer, f"bias_ih_l0{suffix}").copy_(_gates(both[: len(both) // 2], order, hidden))
                getattr(layer, f"bias_hh_l0{suffix}").copy_(_gates(both[len(both) // 2 :], order, hidden))
    first, cell = _state(lift, op.get(5)), _state(lift, op.get(6) if op.type == "LSTM" else None)
    if op.type == "LSTM" and (first is None) != (cell is None):
        first, cell = (v if v is not None else lift.call(torch.zeros_like, cell if first is None else first) for v in (first, cell))
    states = () if first is None else ((first, cell),) if op.type == "LSTM" else (first,)
    x = lift.call(torch.flip, x, [0]) if way == "reverse" else x
    sequence, last = lift.module(op.path(op.get(1)), layer, x, *states)
    sequence = lift.call(torch.flip, sequence, [0]) if way == "reverse" else sequence
    if ways == 1:
        sequence = lift.call(torch.unsqueeze, sequence, 1)
    else:
        sequence = lift.call(torch.permute, lift.call(torch.unflatten, sequence, 2, (ways, -1)), (0, 2, 1, 3))
    return [sequence, *(last if isinstance(last, list) else [last])]


def _full(lengths: Value | None, x: Traced) -> bool:
    return isinstance(lengths, torch.Tensor) and bool((lengths == x.shape[0]).all())


@rule("Attention")
def attention(op: Operation, lift: Lift) -> Any:
    """Of opset 23: ``[N, heads, T, width]``, or ``[N, T, heads * width]`` with the numbers of heads as attributes."""
    parts = [op.traced(place, lift) for place in (0, 1, 2)]
    heads = [op.attribute("q_num_heads"), *[op.attribute("kv_num_heads")] * 2]
    flat = parts[0].ndim == 3
    if flat:
        parts = [lift.call(torch.transpose, lift.call(torch.unflatten, p, 2, (int(h), -1)), 1, 2) for p, h in zip(parts, heads, strict=True)]
    if op.outputs > 1 or op.attribute("softcap", 0.0) or any(op.get(i) is not None for i in (4, 5, 6)) or parts[0].shape[1] != parts[1].shape[1]:
        raise Unliftable("it is an attention with a cache, a cap, shared heads, or further outputs")
    mask = None if op.get(3) is None else lift.tensor(op.need(3))
    found = lift.call(F.scaled_dot_product_attention, *parts, mask, 0.0, bool(op.attribute("is_causal", 0)), scale=op.attribute("scale"))
    return lift.call(torch.flatten, lift.call(torch.transpose, found, 1, 2), 2) if flat else found
