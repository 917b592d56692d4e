"""ONNX operations that make, move and compute shapes. Numbers in a file that mean "all of that dimension" become just that."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from slimline.sources._lift import Lift, Size, Sizes, Traced, Unliftable, Value
from slimline.sources._onnx_layers import embedding
from slimline.sources._onnx_operation import SHAPE_RULES, Operation, number_of, rule

END = 2**62


# -- reshaping -----------------------------------------------------------------------------------


@rule("Reshape")
def reshape(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    target = op.ints(1, lift, "shape")
    assert target is not None
    if isinstance(x, torch.Tensor):
        return lift.call(torch.reshape, x, [x.shape[i] if t == 0 and not op.attribute("allowzero", 0) else t for i, t in enumerate(target)])
    return to_shape(lift, x, [lift.size(x, i) if t == 0 and not op.attribute("allowzero", 0) else t for i, t in enumerate(target)])


def to_shape(lift: Lift, x: Traced, target: Sequence[int | Size]) -> Traced:
    """A reshape said as merges and divisions of dimensions, so that none of the others is fixed by it."""
    before = [tuple(v.shape) for v in x.pair]
    after = [_resolved([t.pair[k] if isinstance(t, Size) else t for t in target], before[k]) for k in (0, 1)]
    plan = None
    if after[0] is not None and after[1] is not None and not lift.fixed_batch:
        plan = _aligned(list(zip(*before, strict=True)), list(zip(after[0], after[1], strict=True)))
    if plan is None and after[0] is not None:
        plan = _aligned([(a,) for a in before[0]], [(b,) for b in after[0]])
    if plan is None:
        found: Traced = lift.call(torch.reshape, x, list(target))
        return found
    for start, count, out, wide in reversed(plan):
        if count > 1:
            x = lift.call(torch.flatten, x, start, start + count - 1)
        if count == 0:
            for _ in range(wide):
                x = lift.call(torch.unsqueeze, x, start)
        elif wide == 0:
            x = lift.call(torch.squeeze, x, start)
        elif wide > 1:
            x = lift.call(torch.unflatten, x, start, _parts(target[out : out + wide], x.ndim, start))
    return x


def _resolved(target: Sequence[int], before: Sequence[int]) -> tuple[int, ...] | None:
    """With the -1 replaced; ``None`` if the numbers of elements do not fit (as for a batch that the file fixes)."""
    total = known = 1
    for n in before:
        total *= n
    for t in target:
        known *= t if t != -1 else 1
    if -1 in target and (known == 0 or total % known):
        return None
    found = tuple(total // known if t == -1 else t for t in target)
    return found if -1 in target or known == total else None


Widths = Sequence[tuple[int, ...]]


def _aligned(before: Widths, after: Widths) -> list[tuple[int, int, int, int]] | None:
    """``(first, count, first result, count of results)`` of every run of dimensions that changes; ``None`` if they do not divide so."""
    one = (1,) * len((before or after or [(1,)])[0])
    plan: list[tuple[int, int, int, int]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and before[i] == after[j]:
            i, j = i + 1, j + 1
        elif j < len(after) and after[j] == one:
            plan.append((i, 0, j, 1))
            j += 1
        elif i < len(before) and before[i] == one:
            plan.append((i, 1, j, 0))
            i += 1
        elif i < len(before) and j < len(after):
            left, right, first, made = before[i], after[j], i, j
            while left != right:
                shorter = all(a <= b for a, b in zip(left, right, strict=True))
                if shorter and i + 1 < len(before):
                    i += 1
                    left = tuple(a * b for a, b in zip(left, before[i], strict=True))
                elif not shorter and j + 1 < len(after):
                    j += 1
                    right = tuple(a * b for a, b in zip(right, after[j], strict=True))
                else:
                    return None
            i, j = i + 1, j + 1
            plan.append((first, i - first, made, j - made))
        else:
            return None
    return plan


def _parts(target: Sequence[int | Size], rank: int, dim: int) -> list[int | Size]:
    """The sizes of a division with exactly one left open: the one that the file leaves open, else what pruning changes.

    That is the number of heads where the last dimension of ``[N, T, C]`` is divided, the channels where
    ``[N, C]`` becomes an image, and what lies within a group elsewhere.
    """
    usual = len(target) - 1 if dim < rank - 1 else 0 if rank == 2 else len(target) - 2
    free = next((k for k, t in enumerate(target) if t == -1), usual)
    return [-1 if k == free else t for k, t in enumerate(target)]


@rule("Flatten")
def flatten(op: Operation, lift: Lift) -> Any:
    x, axis = op.traced(0, lift), int(op.attribute("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 0:
        return lift.call(torch.unsqueeze, lift.call(torch.flatten, x), 0)
    x = x if axis == x.ndim else lift.call(torch.flatten, x, axis)
    x = lift.call(torch.unsqueeze, x, x.ndim) if axis == x.ndim and axis >= 1 and len(x.shape) == axis else x
    return x if axis == 1 else lift.call(torch.flatten, x, 0, axis - 1)


@rule("Squeeze")
def squeeze(op: Operation, lift: Lift) -> Any:
    x, axes = lift.tensor(op.need(0)), op.plain_ints(1, lift, "axes")
    if axes is None:
        axes = [d for d, n in enumerate(x.shape) if n == 1]
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = lift.call(torch.squeeze, x, axis)
    return x


@rule("Unsqueeze")
def unsqueeze(op: Operation, lift: Lift) -> Any:
    x, axes = lift.tensor(op.need(0)), op.plain_ints(1, lift, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = lift.call(torch.unsqueeze, x, axis)
    return x


@rule("Transpose")
def transpose(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    return lift.call(torch.permute, x, list(op.attribute("perm") or range(x.ndim - 1, -1, -1)))


@rule("Expand")
def expand(op: Operation, lift: Lift) -> Any:
    x, target = lift.tensor(op.need(0)), op.ints(1, lift)
    assert target is not None
    target = [*([1] * (x.ndim - len(target))), *target]
    lead = len(target) - x.ndim
    wanted = [-1 if d >= lead and (t == 1 or (isinstance(t, int) and t == x.shape[d - lead])) else t for d, t in enumerate(target)]
    if isinstance(x, Traced):  # a size that equals the tensor's own follows it
        wanted = [-1 if isinstance(t, Size) and d >= lead and t.pair == tuple(v.shape[d - lead] for v in x.pair) else t for d, t in enumerate(wanted)]
    return lift.method("expand", x, *wanted)


@rule("Tile")
def tile(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.tile, lift.tensor(op.need(0)), op.ints(1, lift))


# -- picking ---------------------------------------------------------------------------------------


@rule("Slice")
def slices(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    starts, ends = op.ints(1, lift, "starts"), op.ints(2, lift, "ends")
    assert starts is not None and ends is not None
    axes = op.plain_ints(3, lift, "axes") or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, op.plain_ints(4, lift) or [1] * len(starts), strict=True):
        if step > 0:
            end = END if isinstance(end, int) and end >= 2**31 - 1 else end
            x = lift.call(torch.ops.aten.slice.Tensor, x, axis % x.ndim, start, end, step)
        elif step == -1 and start in (-1, x.shape[axis] - 1) and isinstance(end, int) and end <= -x.shape[axis] - 1:
            x = lift.call(torch.flip, x, [axis % x.ndim])
        else:
            raise Unliftable(f"it runs backwards from {start} to {end} by {step}")
    return x


@rule("Split", "SplitToSequence")
def split(op: Operation, lift: Lift) -> Any:
    x, axis = lift.tensor(op.need(0)), int(op.attribute("axis", 0))
    if op.type == "SplitToSequence":
        raise Unliftable("it makes a sequence")
    sizes = op.plain_ints(1, lift, "split")
    if sizes is None:
        count = int(op.attribute("num_outputs", 0) or op.outputs)
        return lift.call(torch.chunk, x, count, axis) if x.shape[axis] % count == 0 else lift.call(torch.split, x, -(-x.shape[axis] // count), axis)
    if len(set(sizes)) == 1:  # said as equal parts, which a narrower tensor has too
        return lift.call(torch.chunk, x, len(sizes), axis)
    return lift.call(torch.split, x, sizes, axis)


@rule("Gather")
def gather(op: Operation, lift: Lift) -> Any:
    data, index, axis = lift.tensor(op.need(0)), lift.tensor(op.need(1)), int(op.attribute("axis", 0))
    if isinstance(data, torch.Tensor) and data.is_floating_point() and data.ndim == 2 and axis == 0 and isinstance(index, Traced):
        return embedding(op, lift, data, index)
    if isinstance(index, torch.Tensor):
        if index.ndim == 0:
            return lift.call(torch.select, data, axis, int(index))
        if isinstance(data, Traced):
            index = torch.where(index < 0, index + data.shape[axis], index)
        picked = lift.call(torch.index_select, data, axis % data.ndim, index.reshape(-1).long())
        return picked if index.ndim == 1 else to_index_shape(lift, picked, axis % data.ndim, tuple(index.shape))
    return lift.call(take, data, index, axis % data.ndim)


def to_index_shape(lift: Lift, x: Any, axis: int, shape: tuple[int, ...]) -> Any:
    return lift.call(torch.unflatten, x, axis, shape)


def take(data: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """``numpy.take``: entries along an axis, negative ones from its end."""
    index = torch.where(index < 0, index + data.shape[axis], index)
    return data[(slice(None),) * axis + (index,)]


@rule("GatherElements")
def gather_elements(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.gather, lift.tensor(op.need(0)), int(op.attribute("axis", 0)), lift.tensor(op.need(1)))


@rule("GatherND")
def gather_nd(op: Operation, lift: Lift) -> Any:
    if op.attribute("batch_dims", 0):
        raise Unliftable("it gathers batch by batch")
    return lift.call(_gather_nd, lift.tensor(op.need(0)), lift.tensor(op.need(1)))


def _gather_nd(data: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return data[tuple(index.unbind(-1))]


@rule("Concat")
def concat(op: Operation, lift: Lift) -> Any:
    return lift.call(torch.cat, [lift.tensor(op.need(i)) for i in range(len(op.inputs))], int(op.attribute("axis", 0)))


@rule("ConcatFromSequence", "SequenceConstruct")
def sequences(op: Operation, lift: Lift) -> Any:
    raise Unliftable("it works on sequences")


# -- making --------------------------------------------------------------------------------------------


@rule("ConstantOfShape")
def constant_of_shape(op: Operation, lift: Lift) -> Any:
    value = op.attribute("value")
    found = value.reshape(-1)[0] if isinstance(value, torch.Tensor) else torch.tensor(0.0)
    return lift.call(torch.full, op.ints(0, lift), found.item(), dtype=found.dtype)


@rule("Range")
def arange(op: Operation, lift: Lift) -> Any:
    values = [v.items[0] if isinstance(v, Sizes) else number_of(v) for v in (op.need(i) for i in range(3))]
    kinds = [v.dtype for v in op.inputs if isinstance(v, torch.Tensor)]
    return lift.call(torch.arange, *values, dtype=kinds[0] if kinds else torch.int64)


@rule("Shape")
def shape(op: Operation, lift: Lift) -> Any:
    x = lift.tensor(op.need(0))
    chosen = range(x.ndim)[slice(int(op.attribute("start", 0)), op.attribute("end"))]
    return torch.tensor([x.shape[d] for d in chosen]) if isinstance(x, torch.Tensor) else Sizes(tuple(lift.size(x, d) for d in chosen))


@rule("Size")
def elements(op: Operation, lift: Lift) -> Any:
    x = op.traced(0, lift)
    total: int | Size = 1
    for d in range(x.ndim):
        total = lift.call(operator.mul, total, lift.size(x, d))
    return Sizes((total,), vector=False)


# -- shapes as values ------------------------------------------------------------------------------------


def _sizes(value: Value | None) -> Sizes | None:
    """A small integer constant, or sizes already."""
    if isinstance(value, Sizes):
        return value
    if isinstance(value, torch.Tensor) and not value.is_floating_point() and value.ndim < 2 and value.numel() < 64:
        return Sizes(tuple(int(v) for v in value.reshape(-1).tolist()), vector=value.ndim == 1)
    return None


@rule("Gather", table=SHAPE_RULES)
def gather_sizes(op: Operation, lift: Lift) -> Any:
    data, index = _sizes(op.get(0)), op.get(1)
    if data is None or not isinstance(index, torch.Tensor) or index.ndim > 1:
        return None
    return Sizes(tuple(data.items[int(i)] for i in index.reshape(-1).tolist()), vector=index.ndim == 1)


@rule("Slice", table=SHAPE_RULES)
def slice_sizes(op: Operation, lift: Lift) -> Any:
    data = _sizes(op.get(0))
    starts, ends, steps = op.plain_ints(1, lift, "starts"), op.plain_ints(2, lift, "ends"), op.plain_ints(4, lift) or [1]
    if data is None or starts is None or ends is None:
        return None
    return Sizes(data.items[slice(starts[0], ends[0] if steps[0] > 0 or ends[0] >= -len(data.items) else None, steps[0])])


@rule("Concat", table=SHAPE_RULES)
def concat_sizes(op: Operation, lift: Lift) -> Any:
    parts = [_sizes(v) for v in op.inputs]
    return None if any(p is None for p in parts) else Sizes(tuple(i for p in parts if p is not None for i in p.items))


@rule("Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast", table=SHAPE_RULES)
def same_sizes(op: Operation, lift: Lift) -> Any:
    data = _sizes(op.get(0))
    if data is None or (op.type == "Cast" and int(op.attribute("to", 7)) not in (6, 7)):
        return None
    if op.type in ("Identity", "Cast"):
        return data
    if op.type == "Reshape":
        wanted = op.plain_ints(1, lift, "shape") or []
        return None if len(wanted) > 1 else Sizes(data.items, vector=len(wanted) == 1)
    if op.type == "Unsqueeze":
        return None if data.vector else Sizes(data.items)
    return None if len(data.items) != 1 else Sizes(data.items, vector=False)


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv, "Mod": operator.mod,
}  # fmt: skip


@rule(*ARITHMETIC, "Min", "Max", table=SHAPE_RULES)
def compute_sizes(op: Operation, lift: Lift) -> Any:
    one, two = _sizes(op.get(0)), _sizes(op.get(1))
    if len(op.inputs) != 2 or one is None or two is None:
        return None
    count = max(len(one.items), len(two.items))
    if any(len(p.items) not in (1, count) for p in (one, two)):
        return None
    pairs = zip(one.items * (count if len(one.items) == 1 else 1), two.items * (count if len(two.items) == 1 else 1), strict=True)
    function = ARITHMETIC.get(op.type)
    if function is None:
        return Sizes(tuple(_chosen(a, b, max if op.type == "Max" else min) for a, b in pairs), one.vector or two.vector)
    return Sizes(tuple(lift.call(function, a, b) for a, b in pairs), one.vector or two.vector)


def _chosen(a: int | Size, b: int | Size, choose: Callable[[int, int], int]) -> int | Size:
    """The smaller or larger, where it is the same one for both batches."""
    pairs = [v.pair if isinstance(v, Size) else (v, v) for v in (a, b)]
    first = [choose(pairs[0][k], pairs[1][k]) == pairs[0][k] for k in (0, 1)]
    if first[0] != first[1]:
        raise Unliftable("it compares the batch size")
    return a if first[0] else b


@rule("ReduceProd", table=SHAPE_RULES)
def product_of_sizes(op: Operation, lift: Lift) -> Any:
    data = _sizes(op.get(0))
    if data is None:
        return None
    total: int | Size = 1
    for item in data.items:
        total = lift.call(operator.mul, total, item)
    return Sizes((total,), vector=bool(op.attribute("keepdims", 1)))


@rule("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", table=SHAPE_RULES)
def compare_sizes(op: Operation, lift: Lift) -> Any:
    one, two = _sizes(op.get(0)), _sizes(op.get(1))
    if one is None or two is None:
        return None
    function = {"Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le}[op.type]
    both = [function(*(_numbers(v, k) for v in (one, two))) for k in (0, 1)]
    if not torch.equal(*both):
        raise Unliftable("it compares the batch size")
    return both[0]


def _numbers(value: Sizes, which: int) -> torch.Tensor:
    found = torch.tensor([i.pair[which] if isinstance(i, Size) else i for i in value.items])
    return found if value.vector else found[0]


@rule("Where", table=SHAPE_RULES)
def choose_sizes(op: Operation, lift: Lift) -> Any:
    condition, one, two = op.get(0), _sizes(op.get(1)), _sizes(op.get(2))
    if not isinstance(condition, torch.Tensor) or one is None or two is None:
        return None
    count = max(len(one.items), len(two.items), condition.numel())
    flags = condition.reshape(-1).expand(count).tolist()
    items = [v.items * (count if len(v.items) == 1 else 1) for v in (one, two)]
    return Sizes(tuple(a if f else b for f, a, b in zip(flags, items[0], items[1], strict=True)), one.vector or two.vector or condition.ndim == 1)
