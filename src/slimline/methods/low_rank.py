"""Replace a layer by two thinner ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from slimline.core.edits import Replace
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.factoring import factorable_layer
from slimline.numerics.factor import channel, spatial, svd, weighted_svd

if TYPE_CHECKING:
    from slimline.model.structure_statistics import StructureStatistics

Factoring = Literal["svd", "spatial", "channel"]
FRACTIONS = (2, 4, 8)  # of the full rank


class LowRank(Method):
    """A weight of rank ``rank``, as two layers in a row.

    ``kind``: ``svd`` for a linear layer (``in -> rank -> out``); for a convolution ``spatial`` (``kh x 1``, then
    ``1 x kw``) or ``channel`` (the same kernel with ``rank`` outputs, then ``1 x 1``). Where the statistics hold the
    layer's input moments, its outputs are kept as close as can be; else its weights.

    Example:
        >>> site = Site(id="fc.weight", kind="weight", op="linear", shape=(64, 256))
        >>> [m.label for m in LowRank.candidates(site)]
        ['low_rank(rank=32)', 'low_rank(rank=16)', 'low_rank(rank=8)']
    """

    name: ClassVar[str] = "low_rank"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "Splits a layer into two thinner ones: fewer bytes and multiply-adds for wide layers, at the price of one more call"
    reference: ClassVar[str] = "Jaderberg et al. 2014 (spatial); Zhang et al. 2016 (channel); Wang et al. 2025, SVD-LLM (activation-aware)"

    rank: int = pydantic.Field(gt=0)
    kind: Factoring = "svd"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """A half, a quarter and an eighth of the full rank, where that leaves fewer elements."""
        kinds: tuple[Factoring, ...] = ()
        if site.op == "linear":
            kinds = ("svd",)
        elif site.op == "conv2d" and site.shape[1] > 1:  # a single input channel: depthwise, or too small to matter
            kinds = ("spatial", "channel") if min(site.shape[2:]) > 1 else ("channel",)
        found = [cls(rank=rank, kind=kind) for kind in kinds for rank in _ranks(full_rank(site.shape, kind))]
        return tuple(m for m in found if m.elements(site.shape) < math.prod(site.shape))

    def elements(self, shape: tuple[int, ...]) -> int:
        """Elements of both factors of a weight of ``shape``."""
        rows, columns = matrix_shape(shape, self.kind)
        return self.rank * (rows + columns)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Replace, ...]:
        """``Replace`` by an ``nn.Sequential`` of two; ``model`` is the ``nn.Module``, ``statistics`` a ``StructureStatistics`` or ``None``.

        Raises:
            UnsupportedSite: not a plain linear layer or convolution, tied, grouped, or a rank that it does not have.
        """
        layer = self._layer(model, site)
        shape = tuple(layer.weight.shape)
        if self.rank > full_rank(shape, self.kind):
            raise UnsupportedSite(f"{self.label} at {site.id}: a weight {shape} has at most rank {full_rank(shape, self.kind)}.")
        moment = _moment(statistics, site.id)
        with torch.no_grad():
            if isinstance(layer, nn.Linear):
                left, right = svd(layer.weight, self.rank) if moment is None else weighted_svd(layer.weight, moment, self.rank)
                return (Replace(site.module, _linear_pair(layer, right, left)),)
            first, second = (spatial if self.kind == "spatial" else channel)(layer.weight, self.rank, moment)
            return (Replace(site.module, _convolution_pair(layer, first, second)),)

    def _layer(self, model: Any, site: Site) -> nn.Linear | nn.Conv2d:
        """The module to factor, checked."""
        layer = factorable_layer(model, site, self.name)
        fits: tuple[Factoring, ...] = ("svd",) if isinstance(layer, nn.Linear) else ("spatial", "channel")
        if self.kind not in fits:
            raise UnsupportedSite(f"low_rank at {site.id}: kind {self.kind} does not go with {type(layer).__name__}.", hint=f"Use {' or '.join(fits)}.")
        return layer


def matrix_shape(shape: tuple[int, ...], kind: Factoring) -> tuple[int, int]:
    """Rows and columns of the matrix that is factored.

    Example:
        >>> matrix_shape((8, 4, 3, 3), "spatial"), matrix_shape((8, 4, 3, 3), "channel")
        ((24, 12), (8, 36))
    """
    if kind == "spatial":
        return shape[0] * shape[3], shape[1] * shape[2]
    return shape[0], math.prod(shape[1:])


def full_rank(shape: tuple[int, ...], kind: Factoring) -> int:
    """The rank that loses nothing."""
    return min(matrix_shape(shape, kind))


def _ranks(full: int) -> tuple[int, ...]:
    """Fractions of the full rank, in the steps that kernels work in: 8 from 64 on, 4 from 16 on."""
    step = 8 if full >= 64 else 4 if full >= 16 else 1
    return tuple(dict.fromkeys(max(step * round(full / f / step), 1) for f in FRACTIONS if full // f > 0))


def _moment(statistics: StructureStatistics | None, parameter: str) -> torch.Tensor | None:
    return statistics.moments.get(parameter) if statistics is not None else None


def _linear_pair(layer: nn.Linear, first: torch.Tensor, second: torch.Tensor) -> nn.Sequential:
    # skip_init: filling them at random would draw from the process's generator.
    narrow = nn.utils.skip_init(nn.Linear, layer.in_features, len(first), bias=False, dtype=first.dtype, device=first.device)
    wide = nn.utils.skip_init(nn.Linear, len(first), layer.out_features, bias=layer.bias is not None, dtype=first.dtype, device=first.device)
    return _filled(layer, narrow, wide, first, second)


def _convolution_pair(layer: nn.Conv2d, first: torch.Tensor, second: torch.Tensor) -> nn.Sequential:
    """Each factor takes stride, padding and dilation along the dimensions that its kernel covers; padding with zeros commutes with the first, which has no bias."""
    pair = []
    for weight, vertical, horizontal in ((first, True, second.shape[3] == 1), (second, False, second.shape[3] > 1)):
        covered = (vertical, horizontal)
        padding = layer.padding if isinstance(layer.padding, str) else tuple(p if c else 0 for p, c in zip(layer.padding, covered, strict=True))
        stride = tuple(s if c else 1 for s, c in zip(layer.stride, covered, strict=True))
        dilation = tuple(d if c else 1 for d, c in zip(layer.dilation, covered, strict=True))
        bias = not vertical and layer.bias is not None
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "bias": bias,
            "padding_mode": layer.padding_mode,
            "dtype": weight.dtype,
            "device": weight.device,
        }
        pair.append(nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), **options))
    return _filled(layer, pair[0], pair[1], first, second)


def _filled(layer: nn.Linear | nn.Conv2d, narrow: Any, wide: Any, first: torch.Tensor, second: torch.Tensor) -> nn.Sequential:
    narrow.weight.copy_(first)
    wide.weight.copy_(second)
    if layer.bias is not None:
        wide.bias.copy_(layer.bias)
    return nn.Sequential(narrow, wide).train(layer.training)
