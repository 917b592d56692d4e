"""Leave out inputs that say little: the first layer becomes narrower, and the artefact still takes them all."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
import torch

from slimline.core.edits import Keep
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Member, Site
from slimline.errors import UnsupportedSite
from slimline.numerics.importance import eliminate

FRACTIONS = (0.75, 0.5, 0.25)  # of the features, that are offered


class FeatureSelect(Method):
    """Keeps ``count`` features of an input; the others are gathered away inside the model.

    Which ones is measured on calibration samples: how much the loss reacts to a feature, times what the other features
    do not tell about it. What reads the features takes over what can be predicted of those that went.

    Example:
        >>> table = Member(parameter="#input.0", dim=1, view=(1, 30, 1))
        >>> [m.count for m in FeatureSelect.candidates(Site(id="#input.0", kind="input", op="input", shape=(1, 30), members=(table,)))]
        [22, 15, 8]
    """

    name: ClassVar[str] = "feature_select"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("input",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "Leaves out uninformative inputs of tabular and sensor models: a narrower first layer; the artefact still takes all inputs"
    reference: ClassVar[str] = (
        "Guyon et al., Gene selection for cancer classification, Machine Learning 2002 (elimination); Hassibi and Stork, NIPS 1992 (its score)"
    )

    count: int = pydantic.Field(gt=0)

    @classmethod
    def candidates(cls, site: Site) -> tuple[FeatureSelect, ...]:
        """Three quarters, a half and a quarter of the features."""
        if site.kind != "input":
            return ()
        counts = dict.fromkeys(max(round(site.features * f), 1) for f in FRACTIONS)
        return tuple(cls(count=c) for c in counts if c < site.features)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Keep, ...]:
        """``Keep`` edits for the input and for all that goes along; ``statistics`` is a ``StructureStatistics``.

        Raises:
            UnsupportedSite: no features to choose from, or statistics that do not hold this input.
        """
        if site.kind != "input" or not site.members:
            raise UnsupportedSite(f"{site.id}: it has no features that could be left out.")
        if self.count >= site.features:
            raise UnsupportedSite(f"{self.label} at {site.id}: it has only {site.features} features.")
        seen = None if statistics is None else statistics.inputs.get(site.id)
        if seen is None:
            raise UnsupportedSite(f"{site.id}: the importance of its features needs calibration samples.")
        values, gradients = seen
        covariance, curvature = feature_moments(values, gradients, site.members[0])
        index, _ = eliminate(covariance, curvature, self.count)
        return tuple(Keep(member, index) for member in site.members)


def feature_moments(values: torch.Tensor, gradients: torch.Tensor, member: Member) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance of the features of ``values [N, ...]`` over samples and positions, and the mean over samples of ``g gᵀ`` summed over positions: ``[F, F]`` each."""
    chosen = torch.tensor(member.positions(tuple(range(member.view[1]))))
    x, g = (t.index_select(member.dim, chosen).movedim(member.dim, -1).double() for t in (values, gradients))
    rows, slopes = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows), slopes.T @ slopes / len(values)
