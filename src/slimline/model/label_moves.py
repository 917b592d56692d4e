"""What becomes of channel labels where values are moved, reduced, pooled or padded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional as F

from slimline.model.label_tensors import core, factors, like, spread, varies
from slimline.model.operations import argument, operation_name

if TYPE_CHECKING:
    from slimline.model.labels import Labels

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
# What makes one number of many; the rest of REDUCED keeps their number, or their order.
SUMMARY = frozenset({"mean", "sum", "amax", "amin", "std", "var", "norm", "linalg_vector_norm", "logsumexp", "std_mean", "var_mean"})
MOST_PLACES = 256  # as heads, of which each has a sum or mean of its own
POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_", "lp_pool")


def move(labelling: Labels, node: fx.Node, name: str, result: Any) -> Any:
    if name in ("cat", "concat", "concatenate"):
        return concatenate(labelling, node)
    if name == "repeat_interleave" and not isinstance(argument(node, "repeats", 1), int):
        return None
    source = labelling.read(node.args[0])
    if source is not None and name in RESHAPED:  # labels are laid out otherwise than the values, so that a view may need a copy
        moved = source.reshape(result.shape)
        _note_division(labelling, node, name, source, moved)
        return moved
    args = fx.map_arg(node.args, lambda n: v if (v := labelling.read(n)) is not None else labelling.env[n])
    kwargs = fx.map_arg(node.kwargs, lambda n: v if (v := labelling.read(n)) is not None else labelling.env[n])
    assert callable(node.target)
    moved = node.target(*args, **kwargs)
    if source is not None:
        _note_division(labelling, node, name, source, moved)
    return list(moved) if isinstance(moved, list | tuple) else moved


def _note_division(labelling: Labels, node: fx.Node, name: str, source: torch.Tensor, moved: Any) -> None:
    """Where code divides a channel dimension in equal parts, every part must keep as many."""
    if name in RESHAPED:
        for dim, start, stop in factors(source.shape, moved.shape):
            if varies(source, dim):
                rest = [d for d in range(moved.ndim) if not start <= d < stop]
                labelling.factored.append(moved.permute(*range(start, stop), *rest).flatten(stop - start)[..., 0])
    elif name == "channel_shuffle":
        groups = int(argument(node, "groups", 1))
        labelling.factored.append(labelling.along(source, 1).reshape(groups, -1))
    elif name in PICKING:
        dim = int(argument(node, "dim", 2 if name in SPLITTING else 1) or 0) if name not in ("slice",) else int(argument(node, "dim", 1) or 0)
        parts = list(moved) if isinstance(moved, list | tuple) else [moved]
        if not varies(source, dim) or (len(parts) == 1 and parts[0].shape == source.shape):
            return
        if len(parts) > 1 and len({p.shape[dim] for p in parts}) == 1:
            labelling.factored.append(torch.stack([core(p).movedim(dim, 0).reshape(p.shape[dim], -1)[:, 0] for p in parts]))
        else:
            labelling.picked.append((core(source), dim))


def concatenate(labelling: Labels, node: fx.Node) -> torch.Tensor | None:
    nodes = node.args[0]
    assert isinstance(nodes, Sequence)
    values = [labelling.read(n) for n in nodes]
    if any(v is None for v in values):
        return None
    parts = [v for v in values if v is not None]
    dim = int(argument(node, "dim", 1) or 0) % parts[0].ndim
    shape = [s if d != dim else sum(p.shape[dim] for p in parts) for d, s in enumerate(parts[0].shape)]
    for d in range(parts[0].ndim):
        if d != dim and all(p.stride(d) == 0 or p.shape[d] == 1 for p in parts):
            parts = [p.narrow(d, 0, 1) for p in parts]
    return torch.cat(parts, dim).expand(shape)


def reduce(labelling: Labels, node: fx.Node, result: Any) -> Any:
    """What is reduced over is tied: a sum over groups keeps the channels within. What becomes of a mean over all channels is told by whom it meets."""
    labels = labelling.read(node.args[0])
    if labels is None:
        return None
    dims = argument(node, "dim", None)
    chosen = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    out, gone = labels, {int(d) % max(labels.ndim, 1) for d in chosen}
    places = [d for d in range(labels.ndim) if d not in gone and varies(labels, d)]
    if operation_name(node) in SUMMARY and any(varies(labels, d) for d in gone) and math.prod(labels.shape[d] for d in places) <= MOST_PLACES:
        small = labels
        for d in set(range(labels.ndim)) - gone - set(places):
            small = small.narrow(d, 0, 1)
        rows = core(small).movedim(places, list(range(len(places)))).flatten(len(places))
        made = labelling.summary(rows.reshape(-1, rows.shape[-1]))
        out = made.reshape([labels.shape[d] if d in places else 1 for d in range(labels.ndim)]).expand(labels.shape)
    out = labelling.even(out, gone)
    kept = [d for d in range(labels.ndim) if d not in {int(c) % labels.ndim for c in chosen}]

    def give(shape: tuple[int, ...]) -> torch.Tensor:
        return (
            out.expand(shape)
            if len(shape) == labels.ndim
            else out.permute(*kept, *[d for d in range(out.ndim) if d not in kept]).reshape([out.shape[d] for d in kept])
        )

    return like(result, give)


def pool(labelling: Labels, node: fx.Node, name: str, result: Any) -> Any:
    """Pooling and resizing work within channels: everything but the spatial dimensions keeps its labels."""
    labels = labelling.read(node.args[0])
    spatial = {"1": 1, "2": 2, "3": 3}.get(next((c for c in name if c in "123"), ""), 0) or (labels.ndim - 2 if labels is not None else 0)
    if labels is None or spatial <= 0 or labels.ndim <= spatial:
        return None
    out = labelling.even(labels, range(labels.ndim - spatial, labels.ndim))
    return like(result, lambda shape: out.expand(shape))


def pad(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels = labelling.read(node.args[0])
    widths: list[int] = list(node.args[1])  # type: ignore[arg-type]  # integers by the schema
    if labels is None:
        return None
    padded = [labels.ndim - 1 - i for i in range(len(widths) // 2) if (widths[2 * i], widths[2 * i + 1]) != (0, 0)]
    if any(varies(labels, d) for d in padded):
        label = labelling.fixed_shape((1,), "channels of fixed number are padded to it")
        return F.pad(labels, widths, value=float(label.item()))
    for d in padded:
        labels = labels.narrow(d, 0, 1)
    return labels.expand(result.shape)


def glu(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels = labelling.read(node.args[0])
    if labels is None:
        return None
    a, b = labels.chunk(2, int(argument(node, "dim", 1) if argument(node, "dim", 1) is not None else -1))
    labelling.tie(a, b)
    return a


def pixel_shuffle(labelling: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    labels = labelling.read(node.args[0])
    if labels is None or labels.ndim != 4:
        return None
    parts = labelling.along(labels, 1).reshape(result.shape[1], -1)
    labelling.tie(parts[:, :1], parts)
    return spread(parts[:, 0], 1, result.shape)


MOVES: Mapping[str, Callable[[Labels, fx.Node, Any], Any]] = MappingProxyType({"pad": pad, "constant_pad_nd": pad, "glu": glu, "pixel_shuffle": pixel_shuffle})
