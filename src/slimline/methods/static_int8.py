"""Static integer execution: weights and activations quantized ahead of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit, Encode, QuantizeValue, SetParameter
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.statistics import MOMENT_WIDTH
from slimline.numerics.affine import Range, WeightRange, value_range
from slimline.numerics.rate import encode_rate_aware, significant
from slimline.numerics.rounding import Rounding, encode

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program, WeightUse
    from slimline.model.statistics import ProgramStatistics

OPS = ("conv1d", "conv2d", "conv3d", "linear")
RELU6 = 6.0
RATES, DEPTHWISE_RATES = (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 2.0)  # bits saved of about seven
BIAS_BITS = 8  # significant ones, as many as the grid of the output has
BIG = 4096  # elements: below, what 2 bits save over 4 is less than the graph's own bytes


class StaticInt8(Method):
    """The layer runs in 8-bit integers; its weight is stored in ``bits``.

    ``range`` is how the activations' ranges are set, ``weight_range`` the weight's, ``rounding`` how its integers are chosen;
    ``correct_bias`` moves the bias by the mean error that rounding the weight makes
    (Nagel et al. 2019, eq. 17). Storing 4 or 2 bits halves or quarters the layer's bytes again at the same speed.
    ``rate``: about so many bits of each value are saved in the archive, by a grid ``2 ** rate`` times as coarse and rounding that weighs error against
    code length; in the file and at run time nothing changes.

    Example:
        >>> StaticInt8(bits=4, rounding="second_order").label
        'static_int8(bits=4, rounding=second_order)'
    """

    name: ClassVar[str] = "static_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "integer convolutions and linear layers: smaller and faster; 4 or 2 stored bits for bytes"
    reference: ClassVar[str] = (
        "Jacob et al. 2018; Nagel et al. 2019 (bias correction); Frantar et al. 2023 (second-order rounding); Conzelmann and Bamler 2025 (rate-aware rounding)"
    )

    bits: Literal[2, 4, 8] = 8
    range: Range = "mse"
    weight_range: WeightRange = "mse"
    rounding: Rounding = "nearest"
    correct_bias: bool = True
    rate: float = pydantic.Field(default=0.0, ge=0, le=7)

    @property
    def gains(self) -> tuple[str, ...]:
        """Rate-aware rounding changes no byte of the file and no time; it makes the integers code better."""
        return ("download",) if self.rate else ()

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """Every way to set ranges at 8 bits, the best rounding at 4, and at 2 where there is much to save; not for depthwise layers, whose few weights per channel cannot make up for each other."""
        if site.op not in OPS:
            return ()
        moments = site.op != "conv3d" and math.prod(site.shape[1:]) <= MOMENT_WIDTH
        rounding: Rounding = "second_order" if moments else "nearest"
        options: list[Method] = [cls(), cls(range="minmax"), cls(range="percentile")]
        if moments:
            options.append(cls(rounding="second_order"))
        options.append(cls(bits=4, rounding=rounding))
        depthwise = site.op != "linear" and site.shape[1] == 1
        if math.prod(site.shape) >= BIG and not depthwise:
            options.append(cls(bits=2, rounding=rounding))
        options += [cls(rounding=rounding, rate=r) for r in (DEPTHWISE_RATES if depthwise else RATES)]
        return tuple(options)

    def rewrite(self, model: Program, site: Site, statistics: ProgramStatistics) -> tuple[Edit, ...]:
        """The weight's integers, the grids of the layer's input and output, and the corrected bias.

        Raises:
            UnsupportedSite: no static kernel, a tied weight, or calibration did not see what is needed.
        """
        use = self._use(model, site, statistics)
        weight = model.parameter(site.id).detach()
        moment = statistics.moment(site.id) if self.rounding == "second_order" else None
        if self.rounding == "second_order" and moment is None:
            raise UnsupportedSite(f"static_int8 at {site.id}: calibration gives no second moments of this {use.op}'s input.", hint="Use rounding=nearest.")
        format = Affine(bits=self.bits, axis=use.axis)
        parts = encode_rate_aware(weight, format, moment, self.rate) if self.rate else encode(weight, format, self.rounding, moment, self.weight_range)
        edits: list[Edit] = [Encode(site.id, format, parts, execute="integer"), *self._grids(use, statistics)]
        mean = statistics.mean_input(site.id) if self.correct_bias and use.bias is not None else None
        if mean is not None and use.bias is not None:
            bias = model.parameter(use.bias).detach()
            shifted = bias + output_shift(weight - format.decode(parts), mean)
            edits.append(SetParameter(use.bias, significant(shifted, BIAS_BITS) if self.rate else shifted))
        return tuple(edits)

    def _use(self, model: Any, site: Site, statistics: Any) -> WeightUse:
        use: WeightUse | None = model.weights.get(site.id)
        if use is None or use.op not in OPS:
            raise UnsupportedSite(f"static_int8 at {site.id}: {site.op} has no static integer kernel.", hint="Use weight_only or dynamic_int8.")
        if use.shared:
            raise UnsupportedSite(f"static_int8 at {site.id}: the weight is tied to another layer.", hint="Use weight_only.")
        if statistics is None:
            raise UnsupportedSite(f"static_int8 at {site.id}: the ranges of activations need calibration samples.", hint="Use weight_only or dynamic_int8.")
        return use

    def _grids(self, use: WeightUse, statistics: ProgramStatistics) -> tuple[QuantizeValue, ...]:
        """Of the input, and of the output unless it leaves the model."""
        found = []
        for value in (use.input,) if use.final else (use.input, use.output):
            histogram = statistics.histogram(value)
            if histogram is None:
                raise UnsupportedSite(f"static_int8 at {use.parameter}: the value {value} was not seen in calibration.")
            scale, zero = value_range(histogram, self.range)
            if value == use.output and use.fused == "relu6":  # the runtime drops the clip only if the grid ends at or below 6
                scale = min(scale, RELU6 / 255)
            found.append(QuantizeValue(value, bits=8, signed=False, scale=scale, zero_point=zero))
        return tuple(found)


def output_shift(delta: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """``E[delta x]``, ``[out]``: what a weight's error moves each output by on average.

    ``delta``: ``[out, n, ...]``; ``mean``: ``E[x]`` of the unfolded input, ``[n]``, or ``[groups, n]``.

    References:
        Nagel et al., ICCV 2019, eq. 17.

    Example:
        >>> import torch
        >>> output_shift(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 0.5])).tolist()
        [4.0]
    """
    per_output = mean.repeat_interleave(len(delta) // len(mean), 0) if mean.ndim == 2 else mean
    return (delta.flatten(1) * per_output).sum(1)
