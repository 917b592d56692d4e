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

import math
from dataclasses import dataclass
from typing import Literal

import torch

from slimline.core.formats import Affine
from slimline.errors import DataError

Range = Literal["minmax", "percentile", "mse"]
WeightRange = Literal["minmax", "mse"]
BINS = 2048
MANY, EVERY = 500_000, 7  # values, from which on every seventh is counted: a prime, so that no column or channel is left out
PERCENTILE = 0.9999  # of the samples inside the range; 99.99 is what TensorRT and ONNX Runtime use
# Shares of the full range that are tried as clipping points: finely where bell-shaped values have their
# optimum, then in ratios for the outliers of transformers, which lie a hundred times further out.
SHARES = torch.cat((torch.linspace(1.0, 0.3, 36, dtype=torch.float64), torch.logspace(-0.6, -2.0, 12, dtype=torch.float64)))
# The same for a weight: smallest share and how many, in equal ratios. Four levels fit a bell curve of
# thousands of values best at a third of its peak, heavy tails lower still; 256 levels clip little.
WEIGHT_SHARES = {2: (0.1, 48), 4: (0.1, 48), 8: (0.6, 16)}
ROUNDS = 3  # of the search over one end, then the other


def quantize(x: torch.Tensor, step: float) -> torch.Tensor:
    """``step * round(x / step)``: the nearest multiple of ``step``.

    Example:
        >>> quantize(torch.tensor([0.24, -0.9]), 0.5).tolist()
        [0.0, -1.0]
    """
    return step * torch.round(x / step)


def fake_quantize(x: torch.Tensor, scale: float, zero_point: int, bits: int = 8, *, signed: bool = False) -> torch.Tensor:
    """``x`` on its grid and back: ``scale * (clamp(round(x / scale) + zero_point) - zero_point)``.

    References:
        Nagel et al. 2021, eq. 4-7.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.3, 99.0]), 0.5, 0, bits=2).tolist()
        [0.0, 0.5, 1.5]
    """
    low, high = grid_limits(bits, signed)
    return ((x / scale).round().add(zero_point).clamp(low, high) - zero_point) * scale


def round_dynamic(x: torch.Tensor) -> torch.Tensor:
    """``x`` rounded to 256 levels over its own range, widened to hold zero: what a kernel makes of an input that it quantizes as it runs.

    References:
        The ONNX operator DynamicQuantizeLinear, whose formula this is.

    Example:
        >>> round_dynamic(torch.tensor([0.0, 0.3, 255.0])).tolist()
        [0.0, 0.0, 255.0]
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if low == high:
        return x
    scale = (high - low) / 255
    return fake_quantize(x, scale, round(min(max(-low / scale, 0.0), 255.0)))


def grid_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of an activation's grid.

    Example:
        >>> grid_limits(8, False), grid_limits(8, True)
        ((0, 255), (-128, 127))
    """
    return (-int(2 ** (bits - 1)), int(2 ** (bits - 1)) - 1) if signed else (0, int(2**bits) - 1)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of a value's samples in equal bins from ``minimum`` to ``maximum``. ``counts``: ``[BINS]`` float64.

    Example:
        >>> h = Histogram.of(torch.tensor([0.0, 1.0])).observe(torch.tensor([-3.0]))
        >>> h.minimum, h.maximum, h.count
        (-3.0, 1.0, 3)
    """

    minimum: float
    maximum: float
    counts: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> Histogram:
        """Of one tensor, any shape; of a large one the exact range, and every seventh value counted.

        Raises:
            DataError: it is empty, or holds NaN or infinity.
        """
        if not x.numel():
            raise DataError("The range of an empty value was asked for.", hint="Give at least one calibration sample.")
        low, high = (float(v) for v in torch.aminmax(x))
        if not -torch.inf < low <= high < torch.inf:
            raise DataError(
                f"A value inside the model reaches from {low} to {high} on the calibration samples.",
                hint="Look for NaN or infinity in the samples or the model.",
            )
        high = high if high > low else low + 1e-12
        values = x if x.numel() < MANY else x.flatten()[::EVERY]
        return cls(low, high, torch.histc(values.float(), BINS, low, high).double())

    def observe(self, x: torch.Tensor) -> Histogram:
        """Of everything so far and ``x``; the range grows as it must."""
        return self.merge(Histogram.of(x))

    def merge(self, other: Histogram) -> Histogram:
        """Of both; bins are moved to the wider range, at their centres."""
        low, high = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        counts = torch.zeros(BINS, dtype=torch.float64)
        for part in (self, other):
            place = ((part.centres - low) / (high - low) * BINS).long().clamp_(0, BINS - 1)
            counts.index_add_(0, place, part.counts)
        return Histogram(low, high, counts)

    @property
    def count(self) -> int:
        """How many values were counted: all of them, or every seventh of very many."""
        return round(float(self.counts.sum()))

    @property
    def centres(self) -> torch.Tensor:
        width = (self.maximum - self.minimum) / BINS
        return self.minimum + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of the samples lie, to a bin's upper edge."""
        total = self.counts.cumsum(0)
        place = int(torch.searchsorted(total, share * total[-1]))
        width = (self.maximum - self.minimum) / BINS
        return self.minimum + width * (min(place, BINS - 1) + 1)


def value_range(histogram: Histogram, method: Range, bits: int = 8, *, signed: bool = False) -> tuple[float, int]:
    """``(scale, zero_point)`` of a value's grid: ``0 .. 2**bits - 1``, or shifted by half of that where ``signed``.

    Zero is always exactly on the grid, and is its lowest point where the value is never negative
    (then a runtime can drop a relu before the quantizer). ``percentile`` cuts 0.01 % on each side
    that is not zero; ``mse`` minimises the squared error of rounding and clipping over the histogram,
    one end after the other.

    References:
        Nagel et al. 2021, section 3.1, eq. 12 (``mse``).

    Example:
        >>> value_range(Histogram.of(torch.tensor([0.0, 25.5])), "minmax")
        (0.1, 0)
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if method == "percentile":
        low = min(0.0, histogram.quantile(1 - PERCENTILE)) if low < 0 else 0.0
        high = max(0.0, histogram.quantile(PERCENTILE)) if high > 0 else 0.0
    elif method == "mse":
        low, high = _least_error(histogram, low, high, bits)
    levels = 2**bits - 1
    scale = max((high - low) / levels, 1e-12)
    return scale, min(levels, max(0, round(-low / scale))) + grid_limits(bits, signed)[0]


def range_errors(histogram: Histogram, low: torch.Tensor, high: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Sum of squared errors over the histogram for every range ``low [K] .. high [K]`` (around zero): ``[K]``."""
    levels = 2**bits - 1
    scale = ((high - low) / levels).clamp_min(1e-12)[:, None]
    zero = (-low[:, None] / scale).round().clamp(0, levels)
    back = ((histogram.centres / scale + zero).round().clamp(0, levels) - zero) * scale
    errors: torch.Tensor = (histogram.counts * (histogram.centres - back).square()).sum(1)
    return errors


def _least_error(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    """Shrink both ends together, then one after the other while it helps: an optimum along each axis."""
    both = range_errors(histogram, SHARES * low, SHARES * high, bits)
    shares = [float(SHARES[both.argmin()])] * 2
    for _ in range(ROUNDS if low < 0 < high else 0):
        for end in (0, 1):
            tried = [torch.full_like(SHARES, shares[0]) * low, torch.full_like(SHARES, shares[1]) * high]
            tried[end] = SHARES * (low, high)[end]
            shares[end] = float(SHARES[range_errors(histogram, tried[0], tried[1], bits).argmin()])
    return low * shares[0], high * shares[1]


def weight_scale(weight: torch.Tensor, format: Affine, method: WeightRange = "minmax") -> torch.Tensor:
    """Scales of a weight, in the shape that ``format.encode`` gives.

    ``mse`` searches shrunken ranges per channel or group for the least squared error.

    Example:
        >>> w = torch.tensor([[2.0, 1.0, 0.9, -1.1, 1.2]])
        >>> [round(float(weight_scale(w, Affine(bits=2), m)), 1) for m in ("minmax", "mse")]
        [2.0, 1.2]
    """
    scale = format.encode(weight)["scale"]
    if method == "minmax":
        return scale
    w = weight.detach().float()
    best, chosen = torch.full_like(scale, float("inf")), scale.clone()
    smallest, steps = WEIGHT_SHARES[format.bits]
    for share in torch.logspace(0.0, math.log10(smallest), steps).tolist():
        s = scale * share
        error = (format.decode(format.quantize(w, s)) - w) ** 2
        total = _reduce(error, format)
        better = total < best
        best, chosen = torch.where(better, total, best), torch.where(better, s, chosen)
    return format.snapped(chosen)


def _reduce(error: torch.Tensor, format: Affine) -> torch.Tensor:
    """Sum over what shares a scale, in the scale's shape."""
    if format.granularity == "per_tensor":
        return error.sum()
    if format.granularity == "per_channel":
        return error.movedim(format.axis, 0).reshape(error.shape[format.axis], -1).sum(1)
    return error.reshape(*error.shape[:-1], -1, format.group).sum(-1)
