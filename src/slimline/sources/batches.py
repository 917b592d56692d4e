"""What ``data(split)`` returned as samples: one pair or many batches, arrays of any library, in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError

BATCHED = "Return torch.utils.data.DataLoader(dataset, batch_size=100), or whole tensors: (inputs, targets)."


def pairs(returned: Any, origin: str) -> list[tuple[Any, Any]]:
    """``(inputs, targets)`` of every batch; one if the split came whole."""
    advice = "Return (inputs, targets), (inputs, None) without labels, None where there is no such split, or an iterable of such pairs."
    if isinstance(returned, tuple) and len(returned) == 2:
        return [(returned[0], returned[1])]
    if isinstance(returned, list) and len(returned) == 2 and all(_is_array(r) for r in returned):
        return [(returned[0], returned[1])]
    if isinstance(returned, torch.utils.data.Dataset) and not hasattr(returned, "__iter__"):
        raise DataError(f"{origin} returned a {type(returned).__name__}, whose items are single samples.", hint=BATCHED)
    if _is_array(returned) or isinstance(returned, dict | str | bytes) or not hasattr(returned, "__iter__"):
        raise DataError(f"{origin} returned a {type(returned).__name__}.", hint=advice)
    if isinstance(getattr(returned, "sampler", None), torch.utils.data.RandomSampler):
        raise DataError(
            f"{origin} returned a {type(returned).__name__} that shuffles.",
            hint="Give it shuffle=False: batches come in a fixed order; Slimline shuffles by itself.",
        )
    batches = list(returned)
    for place, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            shown = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else type(batch).__name__
            raise DataError(f"{origin} returned a {type(returned).__name__} whose item {place} is a {shown}, not a pair.", hint=advice)
    if not batches:
        raise DataError(f"{origin} returned a {type(returned).__name__} without batches.", hint="Return None where there is no such split.")
    again = next(iter(returned), None)
    if again is not None and not _equal(tensors(tuple(batches[0])), tensors(tuple(again))):
        raise DataError(
            f"{origin} gives another first batch when it is read a second time.",
            hint="Return batches in a fixed order and without random augmentation, or whole tensors.",
        )
    return [(batch[0], batch[1]) for batch in batches]


def samples_of(returned: Any, origin: str) -> Samples:
    """What ``data(split)`` returned, whole: arrays and numbers become tensors on the CPU without gradients.

    Raises:
        DataError: it is something else, or its batches do not fit together.

    Example:
        >>> len(samples_of([(torch.zeros(2, 3), [0, 1]), (torch.zeros(1, 3), [1])], "data('train')"))
        3
    """
    return concatenated([made(origin, inputs, targets) for inputs, targets in pairs(returned, origin)], origin)


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__")


def _equal(one: Any, two: Any) -> bool:
    a, b = _pytree.tree_leaves(one), _pytree.tree_leaves(two)
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else bool(x == y) for x, y in zip(a, b, strict=True)
    )


def tensors(tree: Any) -> Any:
    """A pytree with arrays, and lists of numbers, as tensors. A view that keeps a much larger storage alive is copied."""
    import numpy as np

    if isinstance(tree, torch.Tensor):
        tensor = tree.detach().cpu()
        small = tensor.layout == torch.strided and tensor.untyped_storage().nbytes() > 2 * tensor.nbytes
        return tensor.clone() if small else tensor
    if hasattr(tree, "__array__"):
        array = np.require(tree, requirements=["C", "W"])
        if array.dtype.kind not in "biufc":
            raise DataError(f"An array holds {array.dtype}, not numbers.", hint="Give numbers; classes are numbered from 0 as in training.")
        return torch.from_numpy(array)
    if isinstance(tree, list) and tree and all(isinstance(x, int | float) for x in tree):
        return torch.as_tensor(tree)
    if isinstance(tree, dict) or (isinstance(tree, Mapping) and not hasattr(tree, "_fields")):
        return {key: tensors(value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(tensors, tree))
    return type(tree)(map(tensors, tree)) if isinstance(tree, tuple | list) else tree


def signed(tree: Any) -> Any:
    """Targets whose wide unsigned integers, which torch can neither sort nor compare, are int64."""
    wide = (torch.uint16, torch.uint32, torch.uint64)
    return _pytree.tree_map(lambda t: t.long() if isinstance(t, torch.Tensor) and t.dtype in wide else t, tree)


def made(origin: str, inputs: Any, targets: Any = None) -> Samples:
    """Samples of what a user gave, or an error that begins with where they came from."""
    try:
        return Samples.of(tensors(inputs), signed(tensors(targets)))
    except DataError as error:
        raise DataError(f"{origin}: {error.message}", hint=error.hint) from error


def concatenated(parts: list[Samples], origin: str) -> Samples:
    """All batches as one.

    Raises:
        DataError: they are built differently, or their samples have different shapes.
    """
    if len(parts) == 1:
        return parts[0]
    flat = [_pytree.tree_flatten((p.args, p.kwargs, p.targets)) for p in parts]
    for place, (leaves, spec) in enumerate(flat):
        if spec != flat[0][1]:
            raise DataError(f"{origin}: batch {place} is built differently from batch 0.", hint="All batches have the same inputs and targets.")
        for one, first in zip(leaves, flat[0][0], strict=True):
            if one is not None and (not isinstance(one, torch.Tensor) or one.ndim == 0):
                shown = "a tensor of shape ()" if isinstance(one, torch.Tensor) else f"a {type(one).__name__}"
                raise DataError(f"{origin}: item {place} holds {shown} in the place of a batch [N, ...].", hint=BATCHED)
            if isinstance(one, torch.Tensor) and (one.dtype != first.dtype or one.shape[1:] != first.shape[1:]):
                raise DataError(
                    f"{origin}: batch {place} has samples of {one.dtype} {list(one.shape[1:])}, batch 0 of {first.dtype} {list(first.shape[1:])}.",
                    hint="Pad or crop all samples to one shape.",
                )
    joined = [torch.cat(column) if isinstance(column[0], torch.Tensor) else column[0] for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    args, kwargs, targets = _pytree.tree_unflatten(joined, flat[0][1])
    return Samples(args, kwargs, targets)
