"""Static integer execution: weights and activations quantized ahead of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.integer import OPS, integer_edits, integer_use
from slimline.model.statistics import MOMENT_WIDTH
from slimline.numerics.affine import Range, WeightRange
from slimline.numerics.rate import encode_rate_aware
from slimline.numerics.rounding import Learned, Rounding

if TYPE_CHECKING:
    from slimline.model.program import Program
    from slimline.model.statistics import ProgramStatistics

RATES, DEPTHWISE_RATES = (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 2.0)  # bits saved of about seven
BIAS_BITS = 8  # significant ones, as many as the grid of the output has
BIG = 4096  # elements: below, what 2 bits save over 4 is less than the graph's own bytes


class StaticInt8(Method):
    """The layer runs in 8-bit integers; its weight is stored in ``bits``.

    ``range`` is how the activations' ranges are set, ``weight_range`` the weight's, ``rounding`` how its integers are chosen (``learned``: by descent after ``second_order``);
    ``correct_bias`` moves the bias by the mean error that rounding the weight makes
    (Nagel et al. 2019, eq. 17). Storing 4 or 2 bits halves or quarters the layer's bytes again at the same speed.
    ``rate``: about so many bits of each value are saved in the archive, by a grid ``2 ** rate`` times as coarse and rounding that weighs error against
    code length; in the file and at run time nothing changes. ``reduce_range``: 8-bit weights leave one bit free, for processors without dot products of
    8-bit integers (x86 without VNNI), on which kernels add two products in 16 bits and saturate: plain int8 lost 1.9 points so on ResNet-20, and 0.1 with it
    (``benchmarks/saturation.py``). ``power_of_two``: all steps, of weights and of values, are powers of two, for hardware that shifts; the runtimes here multiply, so it
    is not offered, and it loses more than free steps do.

    Example:
        >>> StaticInt8(bits=4, rounding="second_order").label
        'static_int8(bits=4, rounding=second_order)'
    """

    name: ClassVar[str] = "static_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "Integer convolutions and linear layers: smaller and faster; 4 or 2 stored bits for bytes"
    reference: ClassVar[str] = (
        "Jacob et al. 2018; Nagel et al. 2019 (bias correction); Frantar et al. 2023 (second-order rounding); Conzelmann and Bamler 2025 (rate-aware rounding)"
    )

    bits: Literal[2, 4, 8] = 8
    range: Range = "mse"
    weight_range: WeightRange = "mse"
    rounding: Learned = "nearest"
    correct_bias: bool = True
    rate: float = pydantic.Field(default=0.0, ge=0, le=7)
    reduce_range: bool = False
    power_of_two: bool = False

    @pydantic.model_validator(mode="after")
    def _rates_choose_their_steps(self) -> StaticInt8:
        if self.power_of_two and self.rate:
            raise UnsupportedFormat(
                f"static_int8: rate {self.rate:g} with power_of_two: the rate says how coarse steps are, which powers of two cannot follow."
            )
        return self

    @property
    def gains(self) -> tuple[str, ...]:
        """Rate-aware rounding changes no byte of the file and no time; it makes the integers code better."""
        return ("download",) if self.rate else ()

    def reduced(self) -> Method:
        """8-bit weights in 7 of them; what is stored in fewer bits cannot saturate."""
        return self if self.bits < 8 else self.model_copy(update={"reduce_range": True})

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
        use = integer_use(self.name, model, site, statistics)
        weight = model.parameter(site.id).detach()
        moment = statistics.moment(site.id) if self.rounding != "nearest" else None
        if self.rounding != "nearest" and moment is None:
            raise UnsupportedSite(f"static_int8 at {site.id}: calibration gives no second moments of this {use.op}'s input.", hint="Use rounding=nearest.")
        format = Affine(bits=self.bits, axis=use.axis, reduce_range=self.reduce_range, power_of_two=self.power_of_two)
        parts = (
            encode_rate_aware(weight, format, moment, self.rate) if self.rate else statistics.encoded(model, site.id, format, self.rounding, self.weight_range)
        )
        bias_bits = BIAS_BITS if self.rate else 0
        return integer_edits(
            self.name,
            model,
            use,
            statistics,
            format,
            parts,
            range=self.range,
            correct_bias=self.correct_bias,
            bias_bits=bias_bits,
            power_of_two=self.power_of_two,
        )
