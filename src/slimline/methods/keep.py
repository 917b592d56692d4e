"""Leave a weight as it is."""

from __future__ import annotations

from typing import Any, ClassVar

from slimline.core.edits import Edit
from slimline.core.plan import Method
from slimline.core.site import Kind, Site


class Keep(Method):
    """float32, untouched: always there to choose.

    Example:
        >>> Keep().label
        'keep'
    """

    name: ClassVar[str] = "keep"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "Leaves a layer in float32; for the few that lose too much otherwise"
    reference: ClassVar[str] = "none needed"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        return (cls(),) if site.kind == "weight" else ()

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        return ()
