"""Tensors of integer labels: what varies in them, and how they broadcast.

Labels along broadcast dimensions have stride 0, so they cost no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch


def core(labels: torch.Tensor) -> torch.Tensor:
    """The labels with every broadcast dimension narrowed to one."""
    for d in range(labels.ndim):
        if labels.stride(d) == 0 and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def distinct(labels: torch.Tensor) -> torch.Tensor:
    """The labels that occur, ascending."""
    return torch.from_numpy(np.unique(labels.numpy()))


def varies(labels: torch.Tensor, dim: int) -> bool:
    """Whether the labels differ along a dimension."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
        return False
    small = core(labels)
    return bool((small != small.narrow(dim, 0, 1)).any())


def rows_of(labels: torch.Tensor, dim: int) -> torch.Tensor:
    """``[places, size]``: the labels along ``dim``, once for every place where they differ."""
    small = core(labels)
    for d in range(labels.ndim):
        if d != dim % labels.ndim and not varies(small, d):
            small = small.narrow(d, 0, 1)
    rows = torch.from_numpy(np.unique(small.movedim(dim, -1).flatten(0, -2).numpy(), axis=0)) if labels.ndim > 1 else small[None]
    return rows.expand(-1, labels.shape[dim])


def broadcast(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    return a.expand(shape), b.expand(shape)


def stretched(before: torch.Tensor, after: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a labelled value was broadcast over a dimension along which ``other`` has channels."""
    if not before.numel() or not core(before).any():
        return False
    lead = after.ndim - before.ndim
    return any((d < lead or before.shape[d - lead] == 1) and after.shape[d] > 1 and varies(other, d) for d in range(after.ndim))


def either(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if bool((core(a) != 0).all()):
        return a
    shape = a.shape
    for d in range(a.ndim):
        if a.stride(d) == 0 and b.stride(d) == 0:
            a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
    return torch.where(a == 0, b, a).expand(shape)


def spread(channels: torch.Tensor, dim: int, shape: Sequence[int]) -> torch.Tensor:
    """Labels of shape ``shape`` that vary along ``dim`` only."""
    return channels.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(tuple(shape))


def shapes_of(result: Any) -> list[tuple[int, ...]]:
    values = result if isinstance(result, tuple | list) else [result]
    return [tuple(v.shape) for v in values if isinstance(v, torch.Tensor)]


def like(result: Any, give: Callable[[tuple[int, ...]], torch.Tensor]) -> Any:
    """``give(shape)`` for every tensor of a result."""
    if isinstance(result, tuple | list):
        return [like(r, give) for r in result]
    return give(tuple(result.shape)) if isinstance(result, torch.Tensor) else None


def factors(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(dim, start, stop)`` of every dimension that a reshape divides into the dimensions ``start`` to ``stop`` of its result."""
    i = j = 0
    while i < len(before) and j < len(after):
        left, right, first_i, first_j = before[i], after[j], i, j
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        if i == first_i and j > first_j:
            yield i, first_j, j + 1
        i, j = i + 1, j + 1
