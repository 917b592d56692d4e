"""Runs of weights share whole vectors: 2 bits a weight and 1."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pydantic
import torch

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine, Float, Product
from slimline.core.formats.product import cluster, nearest_vector
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.integer import integer_edits, integer_use
from slimline.model.masking import Compact, Execute, has_moments, runs_in_integers

BIG = 16_384  # elements: below, 256 vectors take more than they save
LENGTHS = (4, 8)


class ProductCodes(Compact):
    """Each run of ``d`` weights along the inputs is one of ``k`` vectors that k-means finds: ``log2(k) / d`` bits a weight.

    ``weighted``: each weight's error counts as much as its input's energy. ``values``, ``execute`` and ``reduce_range`` are those of ``codebook``, of
    which this is the form for runs in place of single weights: at the same bits it loses less, since weights that lie side by side are not independent, and
    below 2 bits nothing else is left but zeros. The vectors themselves take ``k d`` bytes, so it is for large layers. Recovery trains them.

    Example:
        >>> ProductCodes(d=8).label
        'product(d=8)'
    """

    name: ClassVar[str] = "product"
    summary: ClassVar[str] = "2 bits a weight and 1: runs of 4 or 8 weights share whole vectors; for large layers; recovery pays; not faster"
    reference: ClassVar[str] = "Gong et al. 2014; Stock et al., And the Bit Goes Down, ICLR 2020 (product quantization by the error of the outputs)"

    k: int = pydantic.Field(default=256, ge=2, le=256)
    d: int = pydantic.Field(default=4, ge=2)
    weighted: bool = True
    values: Literal["int8", "float32"] = "int8"
    execute: Execute = "integer"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """Runs of 4 and of 8, where they divide the inputs of a large layer that runs in integers."""
        if site.kind != "weight" or not runs_in_integers(site) or not has_moments(site) or math.prod(site.shape) < BIG:
            return ()
        return tuple(cls(d=d) for d in LENGTHS if site.shape[1] % d == 0)

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
        energy = None
        if self.weighted:
            moment = statistics.moment(site.id) if statistics is not None else None
            if moment is None:
                raise UnsupportedSite(
                    f"product at {site.id}: weighted=True needs calibration samples and a layer of moderate width.", hint="Use weighted=False."
                )
            energy = _energy(moment, use.shape)
        weight = model.parameter(site.id).detach().float()
        values = Affine(axis=use.axis, reduce_range=self.reduce_range) if self.values == "int8" else Float()
        format = Product(k=self.k, d=self.d, values=values, axis=use.axis)
        try:
            parts = format.encode(weight) if energy is None else encode_weighted(weight, format, energy)
        except UnsupportedFormat as refusal:
            raise UnsupportedSite(f"product at {site.id}: {refusal.message}") from refusal
        if self.execute == "integer":
            return integer_edits(self.name, model, use, statistics, format, parts)
        return (Encode(site.id, format, parts, execute="float"),)


def _energy(moment: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """``E[x²]`` of each weight's input, of the weight's shape."""
    diagonal = moment.reshape(-1, *moment.shape[-2:]).diagonal(dim1=-2, dim2=-1).float()
    return diagonal.repeat_interleave(shape[0] // len(diagonal), 0).reshape(shape)


def encode_weighted(weight: torch.Tensor, format: Product, energy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parts of ``weight`` by k-means in which each square counts its input's ``energy`` (of the weight's shape).

    Raises:
        UnsupportedFormat: runs that do not divide the inputs.
    """
    parts = format.encode(weight)
    scale = format.values.spread(parts["scale"], tuple(weight.shape)) if isinstance(format.values, Affine) else torch.ones(())
    runs = format.runs(format.relative(weight, parts))
    x, counted = runs.reshape(-1, format.d), format.runs(energy * scale.square()).reshape(-1, format.d)
    parts["codebook"] = format.settled(cluster(x, format.k, counted / counted.mean().clamp_min(1e-30)))
    parts["indices"] = nearest_vector(x, parts["codebook"].float(), counted).reshape(runs.shape[:-1]).to(torch.uint8)
    return parts
