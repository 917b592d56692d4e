"""Static integer execution: weights and activations quantized ahead of time."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from slimline.core.edits import Edit, Encode, QuantizeValue, SetParameter
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.numerics.affine import Range, value_range
from slimline.numerics.rounding import Rounding, encode

OPS = ("conv1d", "conv2d", "conv3d", "linear")
RELU6 = 6.0


class StaticInt8(Method):
    """The layer runs in 8-bit integers; its weight is stored in ``bits``.

    ``range`` is how the activations' ranges are set, ``rounding`` how the weight's integers are chosen,
    ``correct_bias`` moves the bias by the mean error that rounding the weight makes
    (Nagel et al. 2019, eq. 17). Storing 4 or 2 bits halves or quarters the layer's bytes again at the same speed.

    Example:
        >>> StaticInt8(bits=4, rounding="second_order").label
        'static_int8(bits=4, rounding=second_order)'
    """

    name: ClassVar[str] = "static_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "integer convolutions and linear layers: smaller and faster; 4 or 2 stored bits for bytes"
    reference: ClassVar[str] = "Jacob et al. 2018; Nagel et al. 2019 (bias correction); Frantar et al. 2023 (second-order rounding)"

    bits: Literal[2, 4, 8] = 8
    range: Range = "mse"
    rounding: Rounding = "nearest"
    correct_bias: bool = True

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        if site.op not in OPS:
            return ()
        options: tuple[Method, ...] = (cls(), cls(range="minmax"), cls(range="percentile"), cls(rounding="second_order"), cls(bits=4, rounding="second_order"))
        return options + ((cls(bits=2, rounding="second_order"),) if _count(site) >= 4096 else ())

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        use = model.weights.get(site.id)
        if use is None or use.op not in OPS:
            raise UnsupportedSite(f"static_int8 at {site.id}: {site.op} has no static integer kernel.", hint="Use weight_only or dynamic_int8.")
        if use.shared:
            raise UnsupportedSite(f"static_int8 at {site.id}: the weight is tied to another layer.", hint="Use weight_only.")
        edits: list[Edit] = []
        for value in (use.input, *(() if use.final else (use.output,))):
            histogram = statistics.histogram(value)
            if histogram is None:
                raise UnsupportedSite(f"static_int8 at {site.id}: the value {value} was not seen in calibration.")
            scale, zero = value_range(histogram, self.range)
            if value == use.output and use.fused == "relu6":  # the runtime drops the clip only if the grid ends at or below 6
                scale = min(scale, RELU6 / 255)
            edits.append(QuantizeValue(value, bits=8, signed=False, scale=scale, zero_point=zero))
        weight = model.parameter(site.id).detach()
        format = Affine(bits=self.bits, axis=use.axis)
        parts = encode(weight, format, self.rounding, statistics.moment(site.id) if self.rounding == "second_order" else None)
        if self.correct_bias and use.bias is not None:
            mean = statistics.mean_input(site.id)
            if mean is not None:
                error = (weight - format.decode(parts)).flatten(1)
                per_output = mean.repeat_interleave(len(error) // len(mean), 0) if mean.ndim == 2 else mean
                edits.append(SetParameter(use.bias, model.parameter(use.bias).detach() + (error * per_output).sum(1)))
        return (Encode(site.id, format, parts, execute="integer"), *edits)


def _count(site: Site) -> int:
    total = 1
    for n in site.shape:
        total *= n
    return total
