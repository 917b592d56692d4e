"""What weights in training take in the archive, as a loss."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.formats import Affine, Masked
from slimline.model.quantizers import FakeWeight
from slimline.numerics.entropy import bits_between, code_lengths, magnitude_classes

ANEW = 25  # steps after which code lengths are counted anew
SPREAD = 0.02  # of a count, that goes to neighbouring integers: those that do not occur are no more than dear


class CodedBits:
    """Bits of all integer weights of a training form under their own frequencies, differentiable in weights and scales.

    What is frequent is cheap: zeros become cheaper the more there are, first of all where a row or a column is small throughout, and whatever the other
    losses do not hold in place follows. Shared entries and float weights do not count.

    References:
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, section 2.
    """

    def __init__(self, module: nn.Module) -> None:
        owners = dict(module.named_parameters())
        self.layers = [(layer, owners[layer.parameter]) for layer in module.modules() if isinstance(layer, FakeWeight) and _grid(layer) is not None]
        self.count = sum(weight.numel() for _, weight in self.layers)
        self._lengths: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._age = 0

    def __call__(self) -> torch.Tensor:
        """Mean bits of a weight, ``[]``; 0 where no weight is coded as integers."""
        if not self.layers:
            return torch.zeros(())
        codes = [_codes(layer, weight) for layer, weight in self.layers]
        if self._age % ANEW == 0:
            self._lengths = [_counted(layer, code.detach()) for (layer, _), code in zip(self.layers, codes, strict=True)]
        self._age += 1
        return torch.stack([bits_between(c, k, t).sum() for c, (k, t) in zip(codes, self._lengths, strict=True)]).sum() / self.count


def _grid(layer: FakeWeight) -> Affine | None:
    format = layer.format.values if isinstance(layer.format, Masked) else layer.format
    return format if isinstance(format, Affine) else None


def _codes(layer: FakeWeight, weight: torch.Tensor) -> torch.Tensor:
    """Weights in steps of their grid, ``[rows, columns]``."""
    grid, tables = _grid(layer), layer.tables
    assert grid is not None
    kept = weight * tables["mask"] if "mask" in tables else weight
    return (kept / grid.spread(tables["scale"], tuple(weight.shape))).flatten(1)


def _counted(layer: FakeWeight, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each weight, and the code lengths in each."""
    grid = _grid(layer)
    assert grid is not None
    values = codes.round().clamp(-grid.limit, grid.limit)
    classes = magnitude_classes(values)
    return classes, code_lengths(values, classes, grid.limit, SPREAD).float()
