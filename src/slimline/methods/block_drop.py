"""Remove a whole residual block: its shortcut stays."""

from __future__ import annotations

from typing import Any, ClassVar

from slimline.core.edits import Replace
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.blocks import Skip


class BlockDrop(Method):
    """Replaces a residual block by the identity.

    Example:
        >>> BlockDrop.candidates(Site(id="layer.1#block", kind="block", op="block", shape=(1, 8)))
        (BlockDrop(),)
    """

    name: ClassVar[str] = "block_drop"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("block",)
    needs: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = "Removes whole residual blocks: the surest way to less latency, since every layer costs time whatever its width"
    reference: ClassVar[str] = "Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, NeurIPS 2016"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        return (cls(),) if site.kind == "block" else ()

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Replace, ...]:
        """One ``Replace``; ``statistics`` is not read.

        Raises:
            UnsupportedSite: the site is no block.
        """
        if site.kind != "block":
            raise UnsupportedSite(f"{site.id} is a {site.kind} site; only blocks can be dropped.")
        return (Replace(site.module, Skip()),)
