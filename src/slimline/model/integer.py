"""Static integer execution of a layer: the checks, the grids around it, and the bias that makes up for the weight's error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from slimline.core.edits import Edit, Encode, QuantizeValue, SetParameter
from slimline.core.formats import Format
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.model.program import Program, WeightUse
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.affine import Range, value_range
from slimline.numerics.rate import significant

OPS = ("conv1d", "conv2d", "conv3d", "linear")
RELU6 = 6.0


def integer_use(method: str, model: Any, site: Site, statistics: Any) -> WeightUse:
    """The weight's use, where it can run in integers.

    Raises:
        UnsupportedSite: no static kernel, a tied weight, or no calibration.
    """
    use: WeightUse | None = model.weights.get(site.id)
    if use is None or use.op not in OPS:
        raise UnsupportedSite(f"{method} at {site.id}: {site.op} has no static integer kernel.", hint="Use weight_only or dynamic_int8.")
    if use.shared:
        raise UnsupportedSite(f"{method} at {site.id}: the weight is tied to another layer.", hint="Use weight_only.")
    if statistics is None:
        raise UnsupportedSite(f"{method} at {site.id}: the ranges of activations need calibration samples.", hint="Use weight_only or dynamic_int8.")
    return use


def integer_edits(
    method: str,
    model: Program,
    use: WeightUse,
    statistics: ProgramStatistics,
    format: Format,
    parts: Mapping[str, torch.Tensor],
    *,
    range: Range = "mse",
    correct_bias: bool = True,
    bias_bits: int = 0,
    power_of_two: bool = False,
) -> tuple[Edit, ...]:
    """The weight's parts, the grids of the layer's input and output, and the corrected bias, to ``bias_bits`` significant bits where that is not 0. ``power_of_two``: the grids' steps are powers of two, too.

    Raises:
        UnsupportedSite: calibration did not see a value that needs a grid.
    """
    edits: list[Edit] = [Encode(use.parameter, format, parts, execute="integer"), *_grids(method, use, statistics, range, power_of_two)]
    mean = statistics.mean_input(use.parameter) if correct_bias and use.bias is not None else None
    if mean is not None and use.bias is not None:
        bias, weight = (model.parameter(name).detach() for name in (use.bias, use.parameter))
        shifted = bias + output_shift(weight - format.decode(parts), mean)
        edits.append(SetParameter(use.bias, significant(shifted, bias_bits) if bias_bits else shifted))
    return tuple(edits)


def _grids(method: str, use: WeightUse, statistics: ProgramStatistics, range: Range, power_of_two: bool = False) -> tuple[QuantizeValue, ...]:
    """Of the input, and of the output unless it leaves the model."""
    found = []
    for value in (use.input,) if use.final else (use.input, use.output):
        histogram = statistics.histogram(value)
        if histogram is None:
            raise UnsupportedSite(f"{method} at {use.parameter}: the value {value} was not seen in calibration.")
        scale, zero = value_range(histogram, range)
        if value == use.output and use.fused == "relu6":  # the runtime drops the clip only if the grid ends at or below 6
            scale = min(scale, RELU6 / 255)
        if power_of_two:  # upwards, so that nothing is clipped that was not
            wider = 2.0 ** math.ceil(math.log2(scale))
            scale, zero = wider, round(zero * scale / wider)
        found.append(QuantizeValue(value, bits=8, signed=False, scale=scale, zero_point=zero))
    return tuple(found)


def output_shift(delta: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """``E[delta x]``, ``[out]``: what a weight's error moves each output by on average.

    ``delta``: ``[out, n, ...]``; ``mean``: ``E[x]`` of the unfolded input, ``[n]``, or ``[groups, n]``.

    References:
        Nagel et al., ICCV 2019, eq. 17.

    Example:
        >>> output_shift(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 0.5])).tolist()
        [4.0]
    """
    per_output = mean.repeat_interleave(len(delta) // len(mean), 0) if mean.ndim == 2 else mean
    return (delta.flatten(1) * per_output).sum(1)
