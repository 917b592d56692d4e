"""What an input passes before it enters the model: the model keeps its signature and its parameters their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from slimline.core.site import INPUT
from slimline.errors import UnsupportedSite

ENTRY = "slimline_input_"  # what is put before a model is called so, and numbered
FEWEST_FEATURES = 4
FEWEST_POSITIONS = 2  # that stay of a sequence: the exporter takes a dimension of one for one that is repeated
FEWEST_BANDS = 8  # of an image's channels: three colours are no list of features


def feature_dims(value: torch.Tensor) -> Iterator[int]:
    """Dimensions that may hold features, the likeliest first; none of integers."""
    if not value.is_floating_point():
        return
    if value.ndim in (2, 3):
        yield from (d for d in range(value.ndim - 1, 0, -1) if value.shape[d] >= FEWEST_FEATURES)
    elif value.ndim == 4 and value.shape[1] >= FEWEST_BANDS:
        yield 1


class Gather(nn.Module):
    """Reads on the given positions along one dimension.

    Example:
        >>> Gather(1, [0, 2])(torch.tensor([[5, 6, 7]])).tolist()
        [[5, 7]]
    """

    index: torch.Tensor

    def __init__(self, dim: int, index: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        return f"{len(self.index)} positions of dimension {self.dim}"


class Crop(nn.Module):
    """The first ``length`` positions of ``[N, T]``, or the last where ``side``, which is cut, is the start.

    Example:
        >>> Crop(2, "end")(torch.tensor([[5, 6, 7]])).tolist(), Crop(2, "start")(torch.tensor([[5, 6, 7]])).tolist()
        ([[5, 6]], [[6, 7]])
    """

    def __init__(self, length: int, side: Literal["start", "end"]) -> None:
        super().__init__()
        self.length, self.side = length, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.length] if self.side == "end" else x[:, x.shape[1] - self.length :]

    def extra_repr(self) -> str:
        return f"to {self.length} positions, cut at the {self.side}"


class Trim(nn.Module):
    """Inputs ``[N, T]`` that belong together, without the padding that every row of the batch has; at most ``length`` positions stay, as with ``Crop``.

    ``padding``: what the input number ``by`` of them holds where there is nothing. How much is cut is found out at every call, so the graph's shapes depend on values.

    Example:
        >>> mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
        >>> [t.shape for t in Trim(6, "end", padding=0, by=1)(mask + 6, mask)]
        [torch.Size([2, 3]), torch.Size([2, 3])]
    """

    places: torch.Tensor

    def __init__(self, length: int, side: Literal["start", "end"], padding: int, by: int = 0) -> None:
        super().__init__()
        self.length, self.side, self.padding, self.by = length, side, padding, by
        counted = torch.arange(1, length + 1)  # how many positions stay where this one does
        self.register_buffer("places", counted if side == "end" else counted.flip(0), persistent=False)
        self.crop = Crop(length, side)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        inputs = tuple(self.crop(x) for x in inputs)
        longest = ((inputs[self.by] != self.padding) * self.places).max().clamp(min=min(FEWEST_POSITIONS, self.length)).item()
        torch._check(longest >= min(FEWEST_POSITIONS, self.length))
        torch._check(longest <= self.length)
        cut = tuple(x[:, :longest] if self.side == "end" else x[:, self.length - longest :] for x in inputs)
        return cut if len(cut) > 1 else cut[0]

    def extra_repr(self) -> str:
        return f"to the longest row's positions, {self.length} at most, cut at the {self.side}"


class Project(nn.Module):
    """Combinations of the positions along one dimension: ``matrix [new, old]`` times what lies there.

    Example:
        >>> Project(1, torch.tensor([[1.0, 1.0]]))(torch.tensor([[5.0, 6.0]])).tolist()
        [[11.0]]
    """

    def __init__(self, dim: int, matrix: torch.Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.utils.skip_init(nn.Linear, matrix.shape[1], len(matrix), bias=False, dtype=matrix.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.dim == x.ndim - 1:
            plain: torch.Tensor = self.linear(x)
            return plain
        mixed: torch.Tensor = self.linear(x.movedim(self.dim, -1))
        return mixed.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        return f"along dimension {self.dim}"


@dataclass(frozen=True)
class _Enter:
    """The hook that sends inputs through a module together; it holds the module that the model holds too, so that both are copied as one."""

    numbers: tuple[int, ...]
    module: nn.Module

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(enumerate((*args, *kwargs.values())))  # in the order of the call, as the exporter numbers them
        passed = self.module(*(given[n] for n in self.numbers))
        given |= zip(self.numbers, passed if len(self.numbers) > 1 else (passed,), strict=True)
        return tuple(given[n] for n in range(len(args))), {name: given[n] for n, name in enumerate(kwargs, len(args))}


@dataclass(frozen=True)
class _Copied:
    """Lets a copy of a graph module enter as the original does: copying loses its hooks, and the modules that its graph does not name."""

    name: str
    enter: _Enter

    def __call__(self, model: nn.Module) -> None:
        model.add_module(self.name, self.enter.module)
        model.register_forward_pre_hook(self.enter, with_kwargs=True)


def prepend(model: nn.Module, values: Sequence[str], module: nn.Module) -> None:
    """Let inputs ``values`` (``#input.0``) of ``model`` go through ``module`` together, after what was put there before. In place.

    Raises:
        UnsupportedSite: no such input is named.
    """
    numbers = []
    for value in values:
        number = value.removeprefix(INPUT)
        if not value.startswith(INPUT) or not number.isdigit():
            raise UnsupportedSite(f"{value}: that is no input; inputs are {INPUT}0 and so on.")
        numbers.append(int(number))
    before = [name for name, _ in model.named_children() if name.startswith(ENTRY)]
    name = f"{ENTRY}{len(before)}"
    module.train(model.training)
    if type(model).forward is nn.Sequential.forward:  # it runs all its children, so a new one must be in its place
        model._modules = {**{n: model._modules[n] for n in before}, name: module, **{n: m for n, m in model._modules.items() if n not in before}}
        return
    entered = _Copied(name, _Enter(tuple(numbers), module))
    entered(model)
    if isinstance(model, fx.GraphModule):
        model._register_deepcopy_hook(entered)
