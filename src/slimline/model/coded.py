"""What weights in training take in the archive, as a loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

import torch
from torch import nn

from slimline.core.formats import Affine, Masked
from slimline.model.program import Program, WeightUse
from slimline.model.quantizers import FakeBias, FakeValue, FakeWeight, insert_after, settle
from slimline.numerics.entropy import bits_between, code_lengths, magnitude_classes

ANEW = 25  # steps after which code lengths are counted anew
SPREAD = 0.02  # of a count, that goes to neighbouring integers: those that do not occur are no more than dear
BIAS_LIMIT = 127  # steps, beyond which a bias costs no more
OUTPUT_STEPS = 2.0  # of the output's own grid, in a step of a bias
BIAS_SHARE = 0.25  # of the root mean square of a layer's biases, that a step is at least


class CodedBits:
    """Bits of all integer weights of a training form, and of biases on grids, under their own frequencies; differentiable in weights and scales.

    What is frequent is cheap: zeros become cheaper the more there are, first of all where a row or a column is small throughout, and whatever the other
    losses do not hold in place follows. Shared entries and float weights do not count.

    References:
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, section 2.
    """

    def __init__(self, module: nn.Module) -> None:
        owners = dict(module.named_parameters())
        self.layers = [(layer, owners[layer.parameter]) for layer in module.modules() if _counts(layer)]
        self.count = sum(values.numel() for _, values in self.layers)
        self._lengths: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._age = 0

    def __call__(self) -> torch.Tensor:
        """Mean bits of a weight, ``[]``; 0 where none is coded as integers."""
        if not self.layers:
            return torch.zeros(())
        codes = [_codes(layer, values) for layer, values in self.layers]
        if self._age % ANEW == 0:
            self._lengths = [_counted(layer, code.detach()) for (layer, _), code in zip(self.layers, codes, strict=True)]
        self._age += 1
        return torch.stack([bits_between(c, k, t).sum() for c, (k, t) in zip(codes, self._lengths, strict=True)]).sum() / self.count


def _counts(layer: nn.Module) -> TypeGuard[FakeWeight | FakeBias]:
    return isinstance(layer, FakeBias) or (isinstance(layer, FakeWeight) and _grid(layer) is not None)


def _grid(layer: FakeWeight) -> Affine | None:
    format = layer.format.values if isinstance(layer.format, Masked) else layer.format
    return format if isinstance(format, Affine) else None


def _codes(layer: FakeWeight | FakeBias, values: torch.Tensor) -> torch.Tensor:
    """Values in steps of their grid, ``[rows, columns]``."""
    if isinstance(layer, FakeBias):
        return layer.codes(values).reshape(1, -1)
    grid, tables = _grid(layer), layer.tables
    assert grid is not None
    kept = values * tables["mask"] if "mask" in tables else values
    return (kept / grid.spread(tables["scale"], tuple(values.shape))).flatten(1)


def _counted(layer: FakeWeight | FakeBias, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each value, and the code lengths in each; biases are all of one class."""
    grid = None if isinstance(layer, FakeBias) else _grid(layer)
    limit = BIAS_LIMIT if grid is None else grid.limit
    values = codes.round().clamp(-limit, limit)
    classes = torch.zeros_like(values, dtype=torch.long) if grid is None else magnitude_classes(values)
    return classes, code_lengths(values, classes, limit, SPREAD).float()


def coarse_biases(program: Program, uses: Iterable[WeightUse]) -> None:
    """Put the biases of a training form on grids, in place, where the weight beside them has one. ``uses``: those of the float program's weights.

    A step is a few of the output's own, or a share of the biases themselves, whichever is more: rounding them costs little beside what the
    output's rounding costs, and training makes up for it.
    """
    fakes = {layer.parameter: layer for layer in program.module.modules() if isinstance(layer, FakeWeight) and _grid(layer) is not None}
    scales = {layer.edit.value: layer.scale for layer in program.module.modules() if isinstance(layer, FakeValue)}
    readers = {str(n.target): n for n in program.graph.nodes if n.op == "get_attr"}
    for count, use in enumerate([u for u in uses if u.parameter in fakes and u.bias in readers]):
        assert use.bias is not None
        bias = program.parameter(use.bias).detach()
        aim = max(OUTPUT_STEPS * scales.get(use.output, 0.0), BIAS_SHARE * float(bias.square().mean().sqrt()))
        if aim > 0:
            insert_after(program.module, readers[use.bias], f"fake_bias_{count}", _bias_grid(use, fakes[use.parameter], scales.get(use.input), aim))
    program.module.graph.lint()
    program.module.recompile()


def _bias_grid(use: WeightUse, weight: FakeWeight, unit: float | None, aim: float) -> FakeBias:
    """Steps of about ``aim``: in integer linear layers so many whole units of the kernel, elsewhere, where biases are stored as floats, a power of two."""
    assert use.bias is not None
    if use.op == "linear" and unit is not None:
        product = unit * float(weight.tables["scale"].detach().mean())
        return FakeBias(use.bias, unit * 2.0 ** max(0, round(math.log2(aim / product))), weight)
    return FakeBias(use.bias, 2.0 ** round(math.log2(aim)), None)


def settle_biases(program: Program) -> None:
    """Round the biases of a training form to their grids, in place: as they are stored."""
    for layer in program.module.modules():
        if isinstance(layer, FakeBias):
            settle(program.parameter(layer.parameter), layer)
