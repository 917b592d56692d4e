"""Runs of weights share whole vectors: 2 bits a weight and 1."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine, Float, Product
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.integer import integer_edits, integer_use
from slimline.model.masking import Compact, Execute, has_moments, runs_in_integers
from slimline.numerics.rounding import Rounding
from slimline.numerics.vectors import encode_vectors

BIG, FAIR = 16_384, 4_096  # elements: below, 256 vectors take more than they save, and 64
LENGTHS = (4, 8)


class ProductCodes(Compact):
    """Each run of ``d`` weights along the inputs is one of ``k`` vectors that k-means finds: ``log2(k) / d`` bits a weight.

    ``rounding``: which vector a run takes, the nearest, or (``second_order``) by the error of the outputs, from vectors that k-means finds by the energy of the
    inputs. ``values``, ``execute`` and ``reduce_range`` are those of ``codebook``, of which this is the form for runs in place of single weights: at the same bits it loses less, since weights that lie side by side are not independent, and
    below 2 bits nothing else is left but zeros. The vectors themselves take ``k d`` bytes, so it is for large layers. Recovery trains them.

    Example:
        >>> ProductCodes(d=8).label
        'product(d=8)'
    """

    name: ClassVar[str] = "product"
    summary: ClassVar[str] = "2 bits a weight and 1: runs of 4 or 8 weights share whole vectors; for large layers; recovery pays; not faster"
    reference: ClassVar[str] = "Gong et al. 2014; Stock et al., And the Bit Goes Down, ICLR 2020; van Baalen et al. 2024 (GPTVQ)"

    k: int = pydantic.Field(default=256, ge=2, le=256)
    d: int = pydantic.Field(default=4, ge=2)
    rounding: Rounding = "second_order"
    values: Literal["int8", "float32"] = "int8"
    execute: Execute = "integer"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """Runs of 4 and of 8, where they divide the inputs of a large layer that runs in integers; fewer vectors where it is not so large."""
        if site.kind != "weight" or not runs_in_integers(site) or not has_moments(site) or math.prod(site.shape) < FAIR:
            return ()
        k = 256 if math.prod(site.shape) >= BIG else 64
        return tuple(cls(k=k, d=d) for d in LENGTHS if site.shape[1] % d == 0)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The vectors and every run's index.

        Raises:
            UnsupportedSite: ``d`` does not divide the inputs, calibration cannot give what these options need, or the operation does not run in integers.
        """
        use = model.use(site.id)
        if len(use.shape) < 2 or use.op in ("lstm", "gru"):
            raise UnsupportedSite(f"product at {site.id}: a {use.op} has no inputs that runs could cut.", hint="Use codebook.")
        if self.execute == "integer":
            if self.values == "float32":
                raise UnsupportedSite(f"product at {site.id}: float entries do not execute in integers.", hint="Use values=int8, or execute=float.")
            integer_use(self.name, model, site, statistics)
        moment = statistics.moment(site.id) if statistics is not None and self.rounding == "second_order" else None
        if self.rounding == "second_order" and moment is None:
            raise UnsupportedSite(
                f"product at {site.id}: rounding=second_order needs calibration samples and a layer of moderate width.", hint="Use rounding=nearest."
            )
        weight = model.parameter(site.id).detach().float()
        values = Affine(axis=use.axis, reduce_range=self.reduce_range) if self.values == "int8" else Float()
        format = Product(k=self.k, d=self.d, values=values, axis=use.axis)
        try:
            parts = format.encode(weight) if moment is None else encode_vectors(weight, format, moment)
        except UnsupportedFormat as refusal:
            raise UnsupportedSite(f"product at {site.id}: {refusal.message}") from refusal
        if self.execute == "integer":
            return integer_edits(self.name, model, use, statistics, format, parts)
        return (Encode(site.id, format, parts, execute="float"),)
