"""Replace a convolution by three cheap ones: into few channels, the kernel among them, out again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from slimline.core.edits import Replace
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.factoring import factorable_layer
from slimline.numerics.tucker import cp, ranks_for, spectra, tucker2, vbmf_rank

if TYPE_CHECKING:
    from slimline.model.structure_statistics import StructureStatistics

FEWEST_CHANNELS = 16  # on either side: below, three calls cost more than one saves


class Tucker(Method):
    """A convolution as ``1 x 1``, the kernel among few channels, ``1 x 1``.

    ``kind``: ``tucker`` (Tucker-2: a full kernel in the middle) or ``cp`` (a depthwise one). At most ``share`` of the weight's elements stay; within that
    the ranks are those whose left-out energy in the layer's spectra, weighted by its inputs, is least. ``rank = "vbmf"``
    takes the ranks that variational Bayes finds to stand out of the noise instead (``tucker`` only, then ``share`` is not read).

    Example:
        >>> site = Site(id="c.weight", kind="weight", op="conv2d", shape=(64, 64, 3, 3))
        >>> [m.label for m in Tucker.candidates(site)]
        ['tucker', 'tucker(share=0.25)', 'tucker(kind=cp, share=0.25)']
    """

    name: ClassVar[str] = "tucker"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "Splits a wide convolution into three (Tucker-2 or CP): fewer bytes and multiply-adds where its channels are correlated"
    reference: ClassVar[str] = "Kim et al., ICLR 2016 (Tucker-2, VBMF ranks); Lebedev et al., ICLR 2015 (CP)"

    kind: Literal["tucker", "cp"] = "tucker"
    share: float = pydantic.Field(default=0.5, gt=0, lt=1)
    rank: Literal["share", "vbmf"] = "share"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Tucker, ...]:
        """Half and a quarter of the elements by Tucker-2, a quarter by CP."""
        if site.op != "conv2d" or min(site.shape[:2]) < FEWEST_CHANNELS or max(site.shape[2:]) < 2:
            return ()
        return (cls(), cls(share=0.25), cls(kind="cp", share=0.25))

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Replace, ...]:
        """``Replace`` by an ``nn.Sequential`` of three; ``model`` is the ``nn.Module``, ``statistics`` a ``StructureStatistics`` or ``None``.

        Raises:
            UnsupportedSite: not a plain convolution, tied, grouped, or too small for ``share``.
        """
        layer = factorable_layer(model, site, self.name)
        if not isinstance(layer, nn.Conv2d):
            raise UnsupportedSite(f"tucker at {site.id}: only convolutions have three factors.", hint="Use low_rank.")
        moment = _moment(statistics, site.id)
        with torch.no_grad():
            factors = (
                cp(layer.weight, self.cp_rank(site), moment) if self.kind == "cp" else tucker2(layer.weight, self.ranks(layer.weight, site, moment), moment)
            )
            return (Replace(site.module, _chain(layer, *factors)),)

    def cp_rank(self, site: Site) -> int:
        """The most components that ``share`` allows.

        Raises:
            UnsupportedSite: it allows none, or ranks by VBMF were asked for.
        """
        out, channels, kh, kw = site.shape
        if self.rank == "vbmf":
            raise UnsupportedSite(f"{self.label} at {site.id}: VBMF finds the ranks of a Tucker-2 factoring only.", hint="Use kind tucker.")
        rank = int(self.share * math.prod(site.shape) / (out + channels + kh * kw))
        if rank < 1:
            raise UnsupportedSite(f"{self.label} at {site.id}: not one component fits into {self.share:g} of {math.prod(site.shape)} elements.")
        return rank

    def ranks(self, weight: torch.Tensor, site: Site, moment: torch.Tensor | None) -> tuple[int, int]:
        """Outputs and inputs of the middle convolution.

        Raises:
            UnsupportedSite: ``share`` leaves no room, or VBMF finds nothing but noise, or nothing to save.
        """
        out, channels, kh, kw = site.shape
        if self.rank == "vbmf":
            found = vbmf_rank(weight.flatten(1)), vbmf_rank(weight.transpose(0, 1).flatten(1))
            elements = found[1] * channels + found[0] * found[1] * kh * kw + found[0] * out
            if min(found) < 1 or elements >= weight.numel():
                raise UnsupportedSite(f"{self.label} at {site.id}: ranks {found} stand out of the noise, which saves nothing.")
            return found
        chosen = ranks_for(site.shape, spectra(weight, moment), self.share)
        if chosen is None:
            raise UnsupportedSite(f"{self.label} at {site.id}: no ranks fit into {self.share:g} of its elements.")
        return chosen


def _moment(statistics: StructureStatistics | None, parameter: str) -> torch.Tensor | None:
    return statistics.moments.get(parameter) if statistics is not None else None


def _chain(layer: nn.Conv2d, first: torch.Tensor, middle: torch.Tensor, last: torch.Tensor) -> nn.Sequential:
    """The middle one has the layer's stride, padding and dilation, which commute with the first, since that has no bias; the last has the layer's bias."""
    common = {"bias": False, "dtype": first.dtype, "device": first.device}
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}
    groups = len(middle) if middle.shape[1] == 1 and len(first) > 1 else 1
    # skip_init: filling them at random would draw from the process's generator.
    narrow = nn.utils.skip_init(nn.Conv2d, layer.in_channels, len(first), 1, **common)
    kernel = nn.utils.skip_init(nn.Conv2d, len(first), len(middle), tuple(middle.shape[2:]), groups=groups, **geometry, **common)
    wide = nn.utils.skip_init(nn.Conv2d, len(middle), layer.out_channels, 1, **{**common, "bias": layer.bias is not None})
    for module, weight in ((narrow, first), (kernel, middle), (wide, last)):
        module.weight.copy_(weight)
    if layer.bias is not None:
        wide.bias.copy_(layer.bias)
    return nn.Sequential(narrow, kernel, wide).train(layer.training)
