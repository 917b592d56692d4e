"""Attributes of modules that count channels, and by which the model's code divides or shapes: which they may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from slimline.core.site import Count, Member, Site
from slimline.model.apply import within

FOLLOWING = nn.Linear | nn.Embedding | nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RNNBase
"""Layers whose attributes ``apply`` keeps in step with their weights."""


def counts_of(model: nn.Module, site: Site, consumers: Sequence[Member]) -> Iterator[tuple[Count, ...]]:
    """Attributes that may count the channels, as sets to try: those of the layers that make them, these and all around them, these and one name.

    At last one name in all modules around those that make or read them, as a block's own ``in_channels``.

    They are whole numbers that equal the number of channels or the size of a dimension made of them. ``consumers``: the members that read them.
    """
    count = site.shape[0]

    def found(path: str, members: Sequence[Member]) -> list[Count]:
        sizes = {count} | {size for outer, _, inner in (m.view for m in members) for size in (count * inner, outer * count * inner)}
        held = vars(model.get_submodule(path)).items()
        return [Count(module=path, name=n, width=v // count) for n, v in held if type(v) is int and v in sizes and not n.startswith("_")]

    made = [m for m in site.members if m not in consumers]
    layers = dict.fromkeys(m.parameter.rpartition(".")[0] for m in made)
    own = tuple(
        c for path in layers if not isinstance(model.get_submodule(path), FOLLOWING) for c in found(path, [m for m in made if within(m.parameter, path)])
    )
    around = [c for path in dict.fromkeys(p.rpartition(".")[0] for p in layers) if path not in layers for c in found(path, site.members)]
    named = [(*own, *(c for c in around if c.name == name)) for name in dict.fromkeys(c.name for c in around)]
    touched = dict.fromkeys(m.parameter.rpartition(".")[0] for m in site.members)
    above = [path.rpartition(".")[0] for path in touched]
    above = [p for p in dict.fromkeys([*above, *(p.rpartition(".")[0] for p in above)]) if p and p not in touched]
    further = [c for path in above for c in found(path, site.members)]
    named += [(*own, *(c for c in further if c.name == name)) for name in dict.fromkeys(c.name for c in further)]
    yield from (s for s in dict.fromkeys([own, (*own, *around), *named]) if s)
