"""One Keras layer as its lifting function sees it: its configuration, its weights, and its values.

A Keras image is ``[N, H, W, C]`` and a sequence ``[N, T, C]``; torch's layers want the channels
second. An ``Image`` is a value that is held that way round, so that only what looks at its shape pays for a permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slimline.sources._lift import Lift, Traced, Unliftable

Rule = Callable[["Layer", Lift, list[Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*classes: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


@dataclass(frozen=True, eq=False)
class Image:
    """A value whose last Keras axis is held as the second."""

    value: Traced


@dataclass(frozen=True, eq=False)
class Layer:
    """``weights``: by their place within the layer (``vars/0``), or in order where the file gives no places."""

    kind: str
    name: str
    config: dict[str, Any] = field(repr=False)
    places: dict[str, torch.Tensor] = field(repr=False)
    listed: list[torch.Tensor] | None = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)
    version: int = 3

    def weights(self, *parts: str) -> list[torch.Tensor]:
        """All weights, those of the named parts one after the other.

        Raises:
            Unliftable: they are integers, whose scales no rule reads.
        """
        found = list(self.listed or ())
        for part in (parts or ("",)) if self.listed is None else ():
            stem = f"{part}/vars/" if part else "vars/"
            count = sum(p.startswith(stem) for p in self.places)
            found += [self.places[f"{stem}{i}"] for i in range(count)]
        integers = next((t.dtype for t in found if not t.is_floating_point()), None)
        if integers is not None:
            raise Unliftable(f"it holds weights of {str(integers).removeprefix('torch.')}, as a model that is quantized already; give the float32 one")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        value = self.config.get(name, default)
        return default if value is None else value

    def pair(self, name: str, count: int, default: int = 1) -> tuple[int, ...]:
        """One number per spatial dimension."""
        value = self.get(name, default)
        return (int(value),) * count if isinstance(value, int) else tuple(int(v) for v in value)

    @property
    def channels_last(self) -> bool:
        return bool(self.get("data_format", "channels_last") == "channels_last")


def plain(lift: Lift, value: Any) -> Traced:
    """A value in Keras's own order."""
    if isinstance(value, Image):
        rank = value.value.ndim
        found: Traced = lift.call(torch.permute, value.value, (0, *range(2, rank), 1))
        return found
    assert isinstance(value, Traced)
    return value


def first(lift: Lift, value: Any, channels_last: bool = True) -> Traced:
    """A value with its channels second."""
    if isinstance(value, Image):
        return value.value if channels_last else plain(lift, value)
    assert isinstance(value, Traced)
    if not channels_last or value.ndim < 3:
        return value
    found: Traced = lift.call(torch.permute, value, (0, value.ndim - 1, *range(1, value.ndim - 1)))
    return found


def image(value: Traced, channels_last: bool = True) -> Any:
    return Image(value) if channels_last and value.ndim > 2 else value


def together(lift: Lift, values: Sequence[Any]) -> tuple[list[Traced], bool]:
    """Values in one order, and whether it is channels second."""
    if any(isinstance(v, Image) for v in values) and len({_rank(v) for v in values}) == 1:
        return [first(lift, v) for v in values], True
    return [plain(lift, v) for v in values], False


def _rank(value: Any) -> int:
    return int((value.value if isinstance(value, Image) else value).ndim)


def dimension(axis: int, rank: int, seconds: bool) -> int:
    """Where a Keras axis lies."""
    axis %= rank
    if not seconds or axis == 0:
        return axis
    return 1 if axis == rank - 1 else axis + 1


def only(values: list[Any]) -> Any:
    if len(values) != 1:
        raise Unliftable(f"it has {len(values)} inputs")
    return values[0]
