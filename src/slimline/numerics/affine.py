"""Uniform quantization: ranges of values, scales of weights.

``quantize(x, a) = a * round(x / a)`` maps ``x`` to the nearest multiple of the step ``a``; every
affine format is that, with a clamp and perhaps a shifted zero.

References:
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, eq. 1.
    Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 2.
    Nagel et al., "A White Paper on Neural Network Quantization", 2021, section 3.1 (range setting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from slimline.core.formats import Affine

Range = Literal["minmax", "percentile", "mse"]
BINS = 2048
PERCENTILE = 0.9999  # of the samples inside the range; 99.99 is what TensorRT and ONNX Runtime use


def quantize(x: torch.Tensor, step: float) -> torch.Tensor:
    """``step * round(x / step)``: the nearest multiple of ``step``.

    Example:
        >>> quantize(torch.tensor([0.24, -0.9]), 0.5).tolist()
        [0.0, -1.0]
    """
    return step * torch.round(x / step)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a value's samples in equal bins from ``minimum`` to ``maximum``. ``counts``: ``[BINS]`` float64."""

    minimum: float
    maximum: float
    counts: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> Histogram:
        """Of one tensor, any shape."""
        low, high = (float(v) for v in torch.aminmax(x))
        high = high if high > low else low + 1e-12
        return cls(low, high, torch.histc(x.float(), BINS, low, high).double())

    def merge(self, other: Histogram) -> Histogram:
        """Of both; bins are moved to the wider range, at their centres."""
        low, high = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        counts = torch.zeros(BINS, dtype=torch.float64)
        for part in (self, other):
            place = ((part.centres - low) / (high - low) * BINS).long().clamp_(0, BINS - 1)
            counts.index_add_(0, place, part.counts)
        return Histogram(low, high, counts)

    @property
    def centres(self) -> torch.Tensor:
        width = (self.maximum - self.minimum) / BINS
        return self.minimum + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of the samples lie."""
        total = self.counts.cumsum(0)
        place = int(torch.searchsorted(total, share * total[-1]))
        width = (self.maximum - self.minimum) / BINS
        return self.minimum + width * (min(place, BINS - 1) + 1)


def value_range(histogram: Histogram, method: Range, bits: int = 8) -> tuple[float, int]:
    """``(scale, zero_point)`` of an unsigned grid ``0 .. 2**bits - 1`` for a value.

    Zero is always exactly on the grid, and is its lowest point where the value is never negative
    (then a runtime can drop a relu before the quantizer). ``percentile`` cuts 0.01 % on each side
    that is not zero; ``mse`` minimises the squared error of rounding and clipping over the histogram.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if method == "percentile":
        low = min(0.0, histogram.quantile(1 - PERCENTILE)) if low < 0 else 0.0
        high = max(0.0, histogram.quantile(PERCENTILE)) if high > 0 else 0.0
    elif method == "mse":
        low, high = _least_error(histogram, low, high, bits)
    return _grid(low, high, bits)


def _grid(low: float, high: float, bits: int) -> tuple[float, int]:
    levels = 2**bits - 1
    scale = max((high - low) / levels, 1e-12)
    return scale, min(levels, max(0, round(-low / scale)))


def _least_error(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    centres, counts = histogram.centres, histogram.counts
    levels = 2**bits - 1
    best, chosen = float("inf"), (low, high)
    for share in torch.linspace(1.0, 0.3, 36, dtype=torch.float64).tolist():
        for cut in ((share, share),) if low == 0.0 or high == 0.0 else ((share, share), (share, 1.0), (1.0, share)):
            a, b = low * cut[0], high * cut[1]
            scale, zero = _grid(a, b, bits)
            back = ((centres / scale + zero).round().clamp(0, levels) - zero) * scale
            error = float((counts * (centres - back) ** 2).sum())
            if error < best:
                best, chosen = error, (a, b)
    return chosen


def weight_scale(weight: torch.Tensor, format: Affine, method: Literal["minmax", "mse"] = "minmax", importance: torch.Tensor | None = None) -> torch.Tensor:
    """Scales of a weight, in the shape that ``format.encode`` gives.

    ``mse`` searches 40 shrunken ranges per channel or group for the least (weighted) squared error.
    ``importance``: of each weight, broadcastable to its shape (as the mean square of its input).
    """
    scale = format.encode(weight)["scale"]
    if method == "minmax":
        return scale
    w = weight.detach().float()
    best, chosen = torch.full_like(scale, float("inf")), scale.clone()
    for share in torch.linspace(1.0, 0.35, 40).tolist():
        s = scale * share
        error = (format.decode(format.quantize(w, s)) - w) ** 2
        if importance is not None:
            error = error * importance
        total = _reduce(error, format)
        better = total < best
        best, chosen = torch.where(better, total, best), torch.where(better, s, chosen)
    return chosen


def _reduce(error: torch.Tensor, format: Affine) -> torch.Tensor:
    """Sum over what shares a scale, in the scale's shape."""
    if format.granularity == "per_tensor":
        return error.sum()
    if format.granularity == "per_channel":
        return error.movedim(format.axis, 0).reshape(error.shape[format.axis], -1).sum(1)
    return error.reshape(*error.shape[:-1], -1, format.group).sum(-1)
