"""All weights of a layer share a few values."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine, Codebook, Float
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.integer import OPS, integer_edits, integer_use
from slimline.model.masking import LEAST, Compact, Execute, has_moments, runs_in_integers
from slimline.model.program import WeightUse
from slimline.numerics.codebook import Init
from slimline.numerics.rounding import Rounding
from slimline.numerics.sparse import common_entries, entries_of, settle_shared

SIZES = (16, 8, 4)


class SharedWeights(Compact):
    """Each weight is one of ``k`` entries that k-means finds: ``log2(k)`` bits each, at levels that lie where the weights do.

    ``init``: where k-means starts; ``hessian`` weighs every weight by its input's energy. ``rounding``: which entry a weight takes,
    the nearest, or by the error of the outputs. ``values=int8`` makes entries integers under a scale per channel, so that with
    ``execute=integer`` the layer runs as ``static_int8`` does (``reduce_range``: as there). Recovery trains entries by the sum of their weights' gradients.
    ``common``: all layers with this option share one codebook, found from all weights that it could serve and trained by all of them. It saves ``k`` bytes a
    layer, so it is for many small layers and not offered.

    Example:
        >>> SharedWeights(k=8).label
        'codebook(k=8)'
    """

    name: ClassVar[str] = "codebook"
    summary: ClassVar[str] = "2 to 4 bits a weight at levels found by k-means, 3 bits among them: less loss than even steps of the same bits; not faster"
    reference: ClassVar[str] = "Han et al. 2016 (Deep Compression); Choi et al. 2017 (Hessian-weighted k-means)"

    k: int = pydantic.Field(default=16, ge=2, le=256)
    init: Init = "hessian"
    rounding: Rounding = "second_order"
    values: Literal["int8", "float32"] = "int8"
    execute: Execute = "integer"
    common: bool = False

    @pydantic.model_validator(mode="after")
    def _common_entries_are_integers(self) -> SharedWeights:
        if self.common and self.values == "float32":
            raise UnsupportedFormat(
                "codebook: common float entries: weights of other layers have other sizes, which only scales make alike.", hint="Use values=int8."
            )
        return self

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """16, 8 and 4 entries; for embeddings and recurrent weights, which lose more, 16."""
        if site.kind != "weight" or math.prod(site.shape) < LEAST:
            return ()
        if not runs_in_integers(site):
            return (cls(init="linear", rounding="nearest", execute="float"),)
        if has_moments(site):
            return tuple(cls(k=k) for k in SIZES)
        return tuple(cls(k=k, init="linear", rounding="nearest") for k in SIZES[:2])

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The entries and every weight's index.

        Raises:
            UnsupportedSite: calibration cannot give what these options need, or the operation does not run in integers.
        """
        use = model.use(site.id)
        if self.execute == "integer":
            if self.values == "float32":
                raise UnsupportedSite(f"codebook at {site.id}: float entries do not execute in integers.", hint="Use values=int8, or execute=float.")
            integer_use(self.name, model, site, statistics)
        moment = None
        if "hessian" in self.init or self.rounding == "second_order":
            moment = statistics.moment(site.id) if statistics is not None else None
            if moment is None:
                raise UnsupportedSite(
                    f"codebook at {site.id}: init=hessian and rounding=second_order need calibration samples and a layer of moderate width.",
                    hint="Use init=linear, rounding=nearest.",
                )
        weight = model.parameter(site.id).detach().float()
        format = Codebook(k=self.k, values=Affine(axis=use.axis, reduce_range=self.reduce_range) if self.values == "int8" else Float(), common=self.common)
        tables = entries_of(weight, format, self.init, moment)
        if self.common:
            tables["codebook"] = common_entries([model.parameter(n) for n, u in model.weights.items() if _served(u)], format)
        settled = settle_shared(weight, format, tables, moment) if self.rounding == "second_order" and moment is not None else weight
        parts = format.assign(settled, tables)
        if self.execute == "integer":
            return integer_edits(self.name, model, use, statistics, format, parts)
        return (Encode(site.id, format, parts, execute="float"),)


def _served(use: WeightUse) -> bool:
    """Whether a common codebook could hold this weight: one that runs in integers, large enough to be worth it."""
    return use.op in OPS and use.axis == 0 and not use.shared and math.prod(use.shape) >= LEAST
