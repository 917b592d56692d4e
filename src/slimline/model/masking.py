"""From an importance and a mask format to the edits at a site: what unstructured and patterned pruning share."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine, Codebook, Float, Masked
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.integer import OPS, integer_edits, integer_use
from slimline.model.statistics import MOMENT_WIDTH, ProgramStatistics
from slimline.numerics.sparse import Importance, encode_masked, score, second_order_mask

Values = Literal["float32", "int8", "int4", "shared"]
Execute = Literal["integer", "float"]
LEAST = 1024  # elements: below, what a mask or a codebook saves is less than the graph's own bytes


class Compact(Method):
    """Base of what stores weights in fewer bytes and makes nothing faster: no runtime here has kernels that skip zeros or multiply shared values.

    Subclasses have ``values``, what is stored, and ``execute``, how the layer runs. ``reduce_range``: integers of 8 bits leave one free, as in ``static_int8``.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)

    reduce_range: bool = False

    def reduced(self) -> Method:
        """Integers of 8 bits, those of a codebook too, in 7 of them where the layer runs in integers."""
        options = self.model_dump()
        wide = options["execute"] == "integer" and options["values"] in ("int8", "shared")
        return self.model_copy(update={"reduce_range": True}) if wide else self

    @property
    def gains(self) -> tuple[str, ...]:
        return ("size", "download")


def values_of(values: Values, axis: int, entries: int = 16, *, reduce_range: bool = False) -> Float | Affine | Codebook:
    """What the kept weights are stored as; ``shared``: entries of a codebook of integers. ``reduce_range``: integers of 8 bits leave one free.

    Example:
        >>> values_of("shared", 0, 8).name
        '8 int8 entries'
    """
    if values == "float32":
        return Float()
    if values == "shared":
        return Codebook(k=entries, values=Affine(axis=axis, reduce_range=reduce_range), zero=True)
    return Affine(axis=axis, reduce_range=reduce_range) if values == "int8" else Affine(bits=4, axis=axis)


def has_moments(site: Site) -> bool:
    """Whether calibration can give the second moments of this site's input."""
    return site.op in ("linear", "conv1d", "conv2d") and math.prod(site.shape[1:]) <= MOMENT_WIDTH


def runs_in_integers(site: Site) -> bool:
    """Whether its operation has a static integer kernel."""
    return site.op in OPS


def masked_edits(
    method: str, model: Any, site: Site, statistics: ProgramStatistics | None, format: Masked, importance: Importance, execute: Execute
) -> tuple[Edit, ...]:
    """Encode the weight by importance; in integers, with the grids around it.

    Raises:
        UnsupportedSite: no such weight, no calibration for what was asked, a pattern that does not fit.
    """
    use = model.use(site.id)
    if execute == "integer":
        if format.grid is None:
            raise UnsupportedSite(f"{method} at {site.id}: {format.name} weights do not execute in integers.", hint="Use execute=float, or integer values.")
        integer_use(method, model, site, statistics)
    weight = model.parameter(site.id).detach()
    moment: torch.Tensor | None = None
    products: torch.Tensor | None = None
    if importance != "magnitude":
        if statistics is None:
            raise UnsupportedSite(f"{method} at {site.id}: importance {importance} needs calibration samples.", hint="Use importance=magnitude.")
        moment = statistics.moment(site.id) if importance == "second_order" else None
        products = None if importance == "second_order" else statistics.products(site.id)
        if importance == "second_order" and moment is None:
            raise UnsupportedSite(
                f"{method} at {site.id}: calibration gives no second moments of this {use.op}'s input.", hint="Use importance=magnitude or taylor."
            )
    try:
        mask = second_order_mask(weight, format, moment) if moment is not None else format.masked_by(score(weight, importance, None, products))
        parts = encode_masked(weight, format, mask, moment)
    except UnsupportedFormat as refusal:
        raise UnsupportedSite(f"{method} at {site.id}: {refusal.message}") from refusal
    if execute == "integer":
        assert statistics is not None
        return integer_edits(method, model, use, statistics, format, parts)
    return (Encode(site.id, format, parts, execute="float"),)
