"""A narrower, shallower copy of the whole model, chosen as one option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic

from slimline.core.edits import Edit, Replace, keep_channels
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.blocks import Skip
from slimline.model.structure_statistics import readers_of
from slimline.numerics.importance import fisher, most_important

WIDTHS = (0.75, 0.5)
DEPTH = 0.5
FEWEST_BLOCKS = 2


class Scale(Method):
    """Every set of channels keeps ``width`` of them, every row of like blocks ``depth`` of them: the weights are the original's.

    Which channels stay is measured as for ``channel_prune`` (Fisher); of the blocks of one shape those stay that are spread most evenly, the first among
    them. Where the original is to be a narrower copy of itself everywhere, this asks once what ``channel_prune`` asks site by site,
    and its loss is measured with everything narrowed at the same time.

    Example:
        >>> part = Site(id="c#channels", kind="channels", op="channels", shape=(64,))
        >>> [m.label for m in Scale.candidates(Site(id="#model", kind="model", op="model", shape=(2,), parts=(part, part)))]
        ['scale(width=0.75)', 'scale(width=0.5)']
    """

    name: ClassVar[str] = "scale"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("model", "channels", "block")
    needs: ClassVar[tuple[str, ...]] = ("calibration", "train")
    summary: ClassVar[str] = "Makes the whole model narrower or shallower at once, as a width multiplier does; needs training data to come back"
    reference: ClassVar[str] = (
        "Howard et al., MobileNets, 2017, section 3.3 (width); Tan and Le, EfficientNet, ICML 2019 (depth); Sanh et al., DistilBERT, 2019 (init)"
    )

    width: float = pydantic.Field(default=1.0, gt=0, le=1)
    depth: float = pydantic.Field(default=1.0, gt=0, le=1)

    @classmethod
    def candidates(cls, site: Site) -> tuple[Scale, ...]:
        """Two widths; where there are blocks to drop also half the depth, alone and with the milder width."""
        if site.kind != "model":
            return ()
        kinds = [p.kind for p in site.parts]
        widths = tuple(cls(width=w) for w in WIDTHS) if "channels" in kinds else ()
        if kinds.count("block") < FEWEST_BLOCKS:
            return widths
        return (*widths, cls(depth=DEPTH), *(cls(width=w, depth=DEPTH) for w in WIDTHS[:1] if widths))

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """``Replace`` edits for the blocks that go and ``Keep`` edits for all channels; ``statistics`` is a ``StructureStatistics``.

        Raises:
            UnsupportedSite: not the whole model, statistics that do not hold what the scores need, or nothing that would change.
        """
        if site.kind != "model":
            raise UnsupportedSite(f"{site.id}: only the whole model is scaled.")
        edits: list[Edit] = [Replace(block.module, Skip()) for block in dropped([p for p in site.parts if p.kind == "block"], self.depth)]
        for part in site.parts:
            count = kept(part, self.width) if part.kind == "channels" else 0
            if part.kind == "channels" and count < part.features:
                if statistics is None:
                    raise UnsupportedSite(f"{self.label}: the importance of channels needs calibration samples.")
                index = most_important(fisher(statistics.mask_gradients(readers_of(model, part))), count)
                edits += keep_channels(part, index)
        if not edits:
            raise UnsupportedSite(f"{self.label}: nothing of this model would change.")
        return tuple(edits)


def kept(part: Site, width: float) -> int:
    """How many channels stay: in the steps that kernels work in, at least one."""
    channels = part.features
    step = 8 if channels >= 32 else 4 if channels >= 16 else 1
    return min(max(step * round(channels * width / step), part.minimum, 1), channels)


def dropped(blocks: Sequence[Site], depth: float) -> list[Site]:
    """The blocks that go: of each run of one shape under one parent, all but ``depth`` of them, spread evenly.

    Example:
        >>> blocks = [Site(id=f"layers.{i}#block", kind="block", op="block", shape=(1, 8)) for i in range(4)]
        >>> [b.id for b in dropped(blocks, 0.5)]
        ['layers.1#block', 'layers.3#block']
    """
    rows: dict[tuple[str, tuple[int, ...]], list[Site]] = {}
    for block in blocks:
        rows.setdefault((block.module.rpartition(".")[0], block.shape), []).append(block)
    gone = []
    for row in rows.values():
        count = int(depth * len(row) + 0.5)
        stay = {i * len(row) // count for i in range(count)} if count else set()
        gone += [block for i, block in enumerate(row) if i not in stay]
    return gone
