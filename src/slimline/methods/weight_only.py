"""Integers in the file, float in the kernel."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.numerics.rounding import Rounding, encode


class WeightOnly(Method):
    """The weight is stored in ``bits`` and decoded before it is used; activations stay float.

    ``group`` 0 is one scale per output channel; otherwise runs of that many inputs share one (linear layers).

    Example:
        >>> WeightOnly(bits=4, group=32).label
        'weight_only(bits=4, group=32)'
    """

    name: ClassVar[str] = "weight_only"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "smaller files for any layer, embeddings and recurrent ones included; needs no data; not faster"
    reference: ClassVar[str] = "Krishnamoorthi 2018; Frantar et al. 2023 (second-order rounding)"

    bits: Literal[2, 4, 8] = 8
    group: int = pydantic.Field(default=0, ge=0)
    rounding: Rounding = "nearest"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        options = [cls(), cls(bits=4), cls(bits=4, rounding="second_order")]
        if site.op in ("embedding", "lstm", "gru"):
            options = [cls(), cls(bits=4)]
        if site.op == "linear":
            options += [cls(bits=4, group=g) for g in (32, 128) if site.shape[-1] % g == 0]
        return tuple(options)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        use = model.weights.get(site.id)
        if use is None:
            raise UnsupportedSite(f"weight_only at {site.id}: the program has no such weight.")
        weight = model.parameter(site.id).detach()
        if self.group and weight.shape[-1] % self.group:
            raise UnsupportedSite(f"weight_only at {site.id}: {weight.shape[-1]} inputs are no multiple of group {self.group}.")
        format = Affine(bits=self.bits, granularity="per_group", group=self.group) if self.group else Affine(bits=self.bits, axis=use.axis)
        moment = statistics.moment(site.id) if statistics is not None and self.rounding == "second_order" else None
        if self.rounding == "second_order" and moment is None:
            raise UnsupportedSite(f"weight_only at {site.id}: second-order rounding needs calibration samples and a layer of moderate width.")
        return (Encode(site.id, format, encode(weight, format, self.rounding, moment), execute="float"),)


