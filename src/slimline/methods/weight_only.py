"""Integers in the file, float in the kernel."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.statistics import MOMENT_WIDTH
from slimline.numerics.affine import WeightRange
from slimline.numerics.rate import encode_rate_aware
from slimline.numerics.rounding import Learned, encode

GROUPS = (32, 64, 128)
RATES = (1.0, 2.0, 3.0, 4.0, 5.0)  # bits saved of about seven


class WeightOnly(Method):
    """The weight is stored in ``bits`` and decoded before it is used; activations stay float.

    One scale per output channel (per row of an embedding), or with ``per_tensor`` one in all; with ``group``
    runs of that many inputs share one (linear layers). ``rate``: about so many bits of each value are saved in the archive, by a grid ``2 ** rate`` times as coarse
    and rounding that weighs error against code length; in the file nothing changes. ``power_of_two``: scales are powers of two, for hardware that shifts.

    Example:
        >>> WeightOnly(bits=4, group=32).label
        'weight_only(bits=4, group=32)'
    """

    name: ClassVar[str] = "weight_only"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "Smaller files for any layer, embeddings and recurrent ones included; needs no data; not faster"
    reference: ClassVar[str] = "Krishnamoorthi 2018; Frantar et al. 2023 (second-order rounding); Conzelmann and Bamler 2025 (rate-aware rounding)"

    bits: Literal[2, 4, 8] = 8
    granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    group: int = pydantic.Field(default=0, ge=0)
    weight_range: WeightRange = "mse"
    rounding: Learned = "nearest"
    rate: float = pydantic.Field(default=0.0, ge=0, le=7)
    power_of_two: bool = False

    @property
    def gains(self) -> tuple[str, ...]:
        return ("download",) if self.rate else ()

    @pydantic.model_validator(mode="after")
    def _group_cuts_channels(self) -> WeightOnly:
        if self.group and self.granularity == "per_tensor":
            raise UnsupportedFormat(f"weight_only: group {self.group} with granularity per_tensor: a group cuts channels.")
        if self.rate and self.power_of_two:
            raise UnsupportedFormat(
                f"weight_only: rate {self.rate:g} with power_of_two: the rate says how coarse steps are, which powers of two cannot follow."
            )
        if self.rate and self.group:
            raise UnsupportedFormat(f"weight_only: rate {self.rate:g} with group {self.group}: rate-aware rounding has one scale per channel.")
        return self

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        if site.kind != "weight":
            return ()
        if site.op == "embedding":
            return (cls(), cls(granularity="per_tensor"), cls(bits=4), *(cls(rate=r) for r in RATES))
        options = [cls(), cls(bits=4)]
        moments = site.op in ("linear", "conv1d", "conv2d") and math.prod(site.shape[1:]) <= MOMENT_WIDTH
        if moments:
            options.append(cls(bits=4, rounding="second_order"))
        rates = RATES[1::2] if site.op in ("linear", "conv1d", "conv2d", "conv3d") else RATES  # for those static_int8 offers the same rounding in all steps
        options += [cls(rounding="second_order" if moments else "nearest", rate=r) for r in rates]
        if site.op == "linear":
            options += [cls(bits=4, group=g) for g in GROUPS if site.shape[-1] % g == 0]
        return tuple(options)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The weight's integers.

        Raises:
            UnsupportedSite: no such weight, a group that does not divide it, or no second moments for second-order rounding.
        """
        use = model.use(site.id)
        weight = model.parameter(site.id).detach()
        if self.group and (use.op != "linear" or weight.shape[-1] % self.group):
            raise UnsupportedSite(
                f"weight_only at {site.id}: group {self.group} needs a linear layer whose inputs are a multiple of it; this is a {use.op} {tuple(weight.shape)}."
            )
        moment = statistics.moment(site.id) if statistics is not None and self.rounding != "nearest" else None
        if self.rounding != "nearest" and moment is None:
            raise UnsupportedSite(
                f"weight_only at {site.id}: second-order rounding needs calibration samples and a layer of moderate width.", hint="Use rounding=nearest."
            )
        format = self._format(use.axis)
        if self.rate:
            parts = encode_rate_aware(weight, format, moment, self.rate)
        elif self.rounding != "nearest":
            parts = statistics.encoded(model, site.id, format, self.rounding, self.weight_range)
        else:
            parts = encode(weight, format, self.rounding, None, self.weight_range)
        return (Encode(site.id, format, parts, execute="float"),)

    def _format(self, axis: int) -> Affine:
        if self.group:
            return Affine(bits=self.bits, granularity="per_group", group=self.group, power_of_two=self.power_of_two)
        return Affine(bits=self.bits, granularity=self.granularity, axis=axis if self.granularity == "per_channel" else 0, power_of_two=self.power_of_two)
