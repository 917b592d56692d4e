"""Fewer inputs, each a combination of all: a linear projection that the model makes first."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
import torch
from torch import nn

from slimline.core.edits import Mix
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import apply_structure

FRACTIONS = (0.5, 0.25)  # of the features, that are offered
FEWEST = 8  # features, from which on a projection can pay for itself
TRIED = 8  # samples on which a projection that leaves nothing out must change nothing
CLOSE = 1e-3  # of the largest output
FLOOR = 1e-6  # of the largest norm of a feature's weights


class Projection(Method):
    """The features of an input become ``dimensions`` combinations of them; the first layers read those and get narrower.

    The combinations are principal components of calibration samples, each feature in the unit of the weights that read it, so that its own unit does not matter. Second moments are
    taken about zero, so no bias is needed. The readers' weights are turned with them, then repaired by least squares; recovery trains both. For several readers
    of one input the projection is shared; of a single one, ``low_rank`` finds the better factors for its outputs.

    Example:
        >>> table = Member(parameter="#input.0", dim=1, view=(1, 30, 1))
        >>> [m.dimensions for m in Projection.candidates(Site(id="#input.0", kind="input", op="input", shape=(1, 30), members=(table,)))]
        [15, 8]
    """

    name: ClassVar[str] = "projection"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("input",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "Reads few combinations of the inputs in place of all of them: for many correlated features and wide first layers"
    reference: ClassVar[str] = "Pearson 1901 and Hotelling 1933 (principal components); Jolliffe, Principal Component Analysis, 2002, section 2.3 (units)"

    dimensions: int = pydantic.Field(gt=0)

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """A half and a quarter of the features."""
        if site.kind != "input" or site.features < FEWEST:
            return ()
        return tuple(cls(dimensions=d) for d in dict.fromkeys(max(round(site.features * f), 1) for f in FRACTIONS))

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Mix, ...]:
        """``Mix`` edits for the input and for all that reads it; ``statistics`` is a ``StructureStatistics``.

        Raises:
            UnsupportedSite: no features, fewer than asked for, or something that reads them one by one.
        """
        if site.kind != "input" or not site.members:
            raise UnsupportedSite(f"{site.id}: it has no features that could be combined.")
        if self.dimensions >= site.features:
            raise UnsupportedSite(f"{self.label} at {site.id}: it has only {site.features} features.")
        seen = None if statistics is None else statistics.inputs.get(site.id)
        if seen is None:
            raise UnsupportedSite(f"{site.id}: principal components need calibration samples.")
        entering, *readers = site.members
        for member in readers:
            _check_reads(model, site, member)
        if entering.places or entering.view[0] != 1 or entering.view[2] != 1 or entering.start:
            raise UnsupportedSite(f"{site.id}: its features lie in no dimension of their own.")
        values = seen[0]
        weights = _norms(model, readers, site.features)
        rows = values.movedim(entering.dim, -1).reshape(-1, site.features).double() * weights
        _, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        vectors = vectors.flip(1)
        whole = _edits(site, weights, vectors)
        _check_linear(model, site, whole, values[:TRIED])
        return _edits(site, weights, vectors[:, : self.dimensions])


def _edits(site: Site, weights: torch.Tensor, vectors: torch.Tensor) -> tuple[Mix, ...]:
    """Into the components ``[F, d]``, and out of them again in the readers' weights."""
    into, out = (vectors * weights[:, None]).T.float(), (vectors / weights[:, None]).T.float()
    return tuple(Mix(member, into if i == 0 else out) for i, member in enumerate(site.members))


def _check_reads(model: nn.Module, site: Site, member: Member) -> None:
    owner, _, leaf = member.parameter.rpartition(".")
    module = model.get_submodule(owner)
    plain = isinstance(module, nn.Linear | nn.RNNBase) or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1 and not module.transposed)
    if not plain or not leaf.startswith("weight") or member.dim != 1 or member.start or member.places:
        raise UnsupportedSite(f"projection at {site.id}: {member.parameter} reads its features one by one.", hint="Use feature_select.")


def _norms(model: nn.Module, readers: list[Member], features: int) -> torch.Tensor:
    """Root of the summed squares of all weights that read a feature: ``[F]`` float64, never zero."""
    total = torch.zeros(features, dtype=torch.float64)
    for member in readers:
        weight = model.get_parameter(member.parameter).detach().double().movedim(member.dim, -1)
        total += weight.reshape(-1, *member.view).square().sum((0, 1, 3))
    return total.sqrt().clamp_min(FLOOR * float(total.max().sqrt().clamp_min(1e-12)))


@torch.no_grad()
def _check_linear(model: nn.Module, site: Site, whole: tuple[Mix, ...], values: torch.Tensor) -> None:
    """With all components kept the model must give what it gave: else something between the input and its readers is not linear."""
    try:
        before, after = model(values), apply_structure(model, whole)(values)
    except Exception as error:
        lines = str(error).splitlines()
        raise UnsupportedSite(f"projection at {site.id}: the model does not run on this input alone: {lines[0] if lines else type(error).__name__}") from error
    if not isinstance(before, torch.Tensor) or float((after - before).abs().max()) > CLOSE * max(float(before.abs().max()), 1e-6):
        raise UnsupportedSite(f"projection at {site.id}: its features pass something that is not linear before a layer reads them.", hint="Use feature_select.")
