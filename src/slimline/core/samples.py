"""Inputs and targets of one split, however the user gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slimline.errors import DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Samples:
    """``args`` and ``kwargs`` are what the model is called with, each a tensor ``[N, ...]``; ``targets`` any pytree of ``[N, ...]`` or ``None``.

    Example:
        >>> import torch
        >>> s = Samples((torch.zeros(5, 3),), {}, torch.arange(5))
        >>> len(s), s[1:3].targets.tolist()
        (5, [1, 2])
    """

    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor]
    targets: Any = None

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All inputs, positional first."""
        return (*self.args, *self.kwargs.values())

    def __getitem__(self, index: slice | torch.Tensor) -> Samples:
        """The samples at ``index`` (a slice, or an integer or boolean tensor)."""
        from torch.utils import _pytree

        targets = None if self.targets is None else _pytree.tree_map(lambda t: t[index], self.targets)
        return Samples(tuple(a[index] for a in self.args), {k: v[index] for k, v in self.kwargs.items()}, targets)

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive batches of ``size``, the last one shorter."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Samples:
        """With every input changed by ``function``; targets stay."""
        return Samples(tuple(map(function, self.args)), {k: function(v) for k, v in self.kwargs.items()}, self.targets)

    def without_targets(self) -> Samples:
        return Samples(self.args, self.kwargs, None)

    @classmethod
    def of(cls, inputs: Any, targets: Any = None) -> Samples:
        """From what the contract allows: a tensor, a tuple of them, or a dict of them.

        Raises:
            DataError: anything else.
        """
        import torch

        args: tuple[Any, ...] = ()
        kwargs: dict[str, Any] = {}
        if isinstance(inputs, torch.Tensor):
            args = (inputs,)
        elif isinstance(inputs, tuple | list):
            args = tuple(inputs)
        elif isinstance(inputs, dict):
            kwargs = dict(inputs)
        else:
            raise DataError(f"inputs are a {type(inputs).__name__}.", hint="Give a tensor [N, ...], a tuple of tensors or a dict of tensors.")
        for name, value in [*enumerate(args), *kwargs.items()]:
            if not isinstance(value, torch.Tensor):
                raise DataError(f"Input {name!r} is a {type(value).__name__}, not a tensor.", hint="Convert it with torch.as_tensor.")
            if value.ndim == 0:
                raise DataError(f"Input {name!r} has no sample axis: its shape is ().", hint="Inputs are [N, ...].")
        if not args and not kwargs:
            raise DataError("There are no inputs.", hint="Give at least one tensor.")
        return cls(args, kwargs, targets)
