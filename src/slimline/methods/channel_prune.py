"""Remove whole channels: every layer that makes or reads them becomes narrower."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from slimline.core.edits import Keep, SetAttribute, keep_channels
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import tensor_of
from slimline.model.structure_statistics import StructureStatistics, readers_of
from slimline.numerics.importance import fisher, magnitude, most_important, per_channel, second_order, taylor

MOST_RUNGS = 8


class ChannelPrune(Method):
    """Keeps the ``keep`` fraction of a site's channels, those that matter most.

    ``importance``: ``l1`` and ``l2`` are the weights' magnitudes; ``taylor`` and ``fisher`` are
    the loss's first- and second-order reaction to a mask on the channel; ``second_order`` is the error
    that its readers are left with when the other channels make up for it. The kept number is
    rounded to a ``multiple`` (kernels work in steps), at least one of it where there are as many.

    Example:
        >>> site = Site(id="c#channels", kind="channels", op="channels", shape=(64,))
        >>> [m.kept(site) for m in ChannelPrune.candidates(site)]
        [56, 48, 40, 32, 24, 16, 8]
    """

    name: ClassVar[str] = "channel_prune"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("channels",)
    needs: ClassVar[tuple[str, ...]] = ("calibration",)
    summary: ClassVar[str] = "Removes whole channels everywhere they are made and read: fewer bytes and multiply-adds on any runtime"
    reference: ClassVar[str] = "Fang et al., DepGraph, CVPR 2023; scores: Li 2017, Molchanov 2019, Theis 2018, Kurtic 2023 (ZipLM)"

    keep: float = pydantic.Field(default=0.5, gt=0, lt=1)
    importance: Literal["l1", "l2", "taylor", "fisher", "second_order"] = "fisher"
    multiple: int = pydantic.Field(default=8, gt=0)

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """At most eight widths, evenly spaced: multiples of 8, of 4 below 32 channels, and any below 16."""
        if site.kind != "channels":
            return ()
        channels = site.shape[0]
        multiple = 8 if channels >= 32 else 4 if channels >= 16 else 1
        widths = [w for w in range(multiple * ((channels - 1) // multiple), 0, -multiple) if w >= site.minimum]
        if len(widths) > MOST_RUNGS:
            widths = [widths[round((i + 0.5) * len(widths) / MOST_RUNGS - 0.5)] for i in range(MOST_RUNGS)]
        return tuple(cls(keep=w / channels, multiple=multiple) for w in widths)

    def kept(self, site: Site) -> int:
        """How many channels stay."""
        channels = site.shape[0]
        step = self.multiple if channels > self.multiple else 1
        wanted = step * round(channels * self.keep / step)
        return max(min(wanted, step * ((channels - 1) // step)), min(step, channels), site.minimum)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Keep | SetAttribute, ...]:
        """``Keep`` edits for every member, and the attributes that count them; ``model`` is the ``nn.Module``, ``statistics`` a ``StructureStatistics``.

        Raises:
            UnsupportedSite: the site has too few channels, or the statistics do not hold what the score needs.
        """
        if site.shape[0] < 2:
            raise UnsupportedSite(f"{site.id}: a single channel cannot be pruned.")
        index = most_important(self.scores(model, site, statistics), self.kept(site))
        return keep_channels(site, index)

    def scores(self, model: nn.Module, site: Site, statistics: StructureStatistics | None) -> torch.Tensor:
        """Importance of each channel, ``[C]``.

        Raises:
            UnsupportedSite: the statistics do not hold what the score needs.
        """
        parameters = dict(model.named_parameters())
        if self.importance in ("l1", "l2"):
            own = [m for m in site.members if m.parameter in parameters and parameters[m.parameter].ndim > 1]
            power = 1 if self.importance == "l1" else 2
            return torch.stack([per_channel(magnitude(tensor_of(model, m.parameter), m.dim, power), m.view, m.start, m.places) for m in own]).sum(0)
        if statistics is None:
            raise UnsupportedSite(f"{site.id}: importance {self.importance} needs calibration statistics.")
        readers = readers_of(model, site)
        if self.importance == "second_order":
            return _second_order(model, site, readers, statistics)
        if not any((m.parameter, m.dim) in statistics.products for m in readers):
            raise UnsupportedSite(f"{site.id}: the statistics hold no gradients of {readers[0].parameter if readers else 'its weights'}.")
        gradients = statistics.mask_gradients(readers)
        return taylor(gradients) if self.importance == "taylor" else fisher(gradients)


def _second_order(model: nn.Module, site: Site, readers: tuple[Member, ...], statistics: StructureStatistics) -> torch.Tensor:
    total = torch.zeros(site.shape[0])
    known = [m for m in readers if m.parameter in statistics.moments and m.dim == 1]
    if not known:
        raise UnsupportedSite(f"{site.id}: the statistics hold no second moments of a layer that reads its channels.")
    for member in known:
        weight, moment = tensor_of(model, member.parameter), statistics.moments[member.parameter]
        # All inputs are scored, each along the weight's own dimension; the channel's are then summed.
        total += per_channel(second_order(weight.flatten(1), moment, weight.shape[1]), member.view, member.start, member.places)
    return total
