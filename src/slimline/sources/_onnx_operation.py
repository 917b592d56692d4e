"""One operation of an ONNX graph as its lifting function sees it, and the tables in which these functions stand."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slimline.sources._lift import Lift, Size, Sizes, Traced, Unliftable, Value

Rule = Callable[["Operation", Lift], Any]
RULES: dict[str, Rule] = {}
"""``Type`` of the default domain, or ``domain::Type`` -> what lifts it."""
SHAPE_RULES: dict[str, Rule] = {}
"""Preferred where an input is made of shapes; ``None`` as a result: the shapes become a tensor."""


def rule(*types: str, table: dict[str, Rule] = RULES) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        table.update(dict.fromkeys(types, function))
        return function

    return register


@dataclass(frozen=True, eq=False)
class Operation:
    """``outputs``: how many results are named; ``opset``: the version of its domain."""

    type: str
    name: str
    inputs: tuple[Value | None, ...]
    attributes: dict[str, Any] = field(repr=False)
    outputs: int
    opset: int
    names: dict[int, str] = field(repr=False)  # id of a stored tensor -> its name in the file

    def get(self, place: int) -> Value | None:
        return self.inputs[place] if place < len(self.inputs) else None

    def need(self, place: int) -> Value:
        value = self.get(place)
        if value is None:
            raise Unliftable(f"its input {place} is missing")
        return value

    def traced(self, place: int, lift: Lift) -> Traced:
        """An input that depends on the model's own."""
        value = lift.tensor(self.need(place))
        if not isinstance(value, Traced):
            raise Unliftable("it works on a constant alone")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def ints(self, place: int, lift: Lift, attribute: str = "") -> list[int | Size] | None:
        """Whole numbers from an input or, in older opsets, from an attribute of that name."""
        value = self.get(place)
        if value is None:
            found = self.attribute(attribute)
            return None if found is None else list(found)
        if isinstance(value, Sizes):
            return list(value.items)
        return [int(v) for v in lift.constant(value, attribute or f"input {place}").reshape(-1).tolist()]

    def plain_ints(self, place: int, lift: Lift, attribute: str = "") -> list[int] | None:
        """The same where no number may follow the batch: axes, paddings."""
        found = self.ints(place, lift, attribute)
        if found is None:
            return None
        if any(isinstance(i, Size) and i.pair[0] != i.pair[1] for i in found):
            raise Unliftable(f"its {attribute or f'input {place}'} depends on the batch size")
        return [i.pair[0] if isinstance(i, Size) else i for i in found]

    def path(self, weight: Value | None = None) -> str:
        """Where a layer goes: by its weight's name if a framework gave it, else by the operation's."""
        stored = self.names.get(id(weight), "")
        found = re.fullmatch(r"(.+)[./](weight|weight_\w+|kernel|kernel:0)", stored)
        if found and "::" not in stored:
            return found.group(1)
        parts = [p for p in self.name.split("/") if p]
        if len(parts) > 1 and re.sub(r"_\d+$", "", parts[-1]) == self.type:
            parts = parts[:-1]
        return ".".join(parts) or self.type.lower()


def number_of(value: Value | None, default: float | None = None) -> float | None:
    """A constant of one element as a Python number, or ``default`` where it is absent."""
    if value is None:
        return default
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise Unliftable("a limit of it is no constant number")
    return value.reshape(()).item()


def scalars(values: Sequence[Value | None]) -> list[Any]:
    """Constants of one element as numbers, where that changes neither shape nor type of the result."""
    traced = [v for v in values if isinstance(v, Traced)]
    if not traced:
        return list(values)
    rank, kinds = max(t.ndim for t in traced), {t.dtype for t in traced}
    return [
        v.reshape(()).item() if isinstance(v, torch.Tensor) and v.numel() == 1 and v.ndim <= rank and kinds == {v.dtype} and v.dtype != torch.bool else v
        for v in values
    ]
