"""Shorter sequences: the model sees fewer tokens, and leaves out the rest itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Prepend
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.entry import Crop

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


class SequenceLength(Method):
    """Token ids, and the masks and positions beside them, are cut to ``length`` positions before anything else. ``side``: where; texts are padded there.

    Example:
        >>> site = Site(id="#input.0", kind="input", op="input", shape=(1, 64), tokens=("#input.0", "#input.1"))
        >>> [m.length for m in SequenceLength.candidates(site)]
        [56, 48, 40, 32, 24, 16]
    """

    name: ClassVar[str] = "sequence_length"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("input",)
    needs: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = "Cuts token sequences that are padded to more than most of them need: less time in every layer, the same weights"
    reference: ClassVar[str] = (
        "Devlin et al., BERT, NAACL 2019, appendix A.2 (attention is quadratic in the sequence length, so 90 % of the steps take shorter ones)"
    )

    length: int = pydantic.Field(gt=0)
    side: Literal["start", "end"] = "end"

    @property
    def caveat(self) -> str:
        return f"texts longer than those of your samples: the artefact cuts what it is given to {self.length} positions, so compress again where texts grow"

    @classmethod
    def candidates(cls, site: Site) -> tuple[SequenceLength, ...]:
        """From seven eighths to a quarter of the positions, in steps of 8, or of fewer where there are few."""
        if site.kind != "input" or not site.tokens:
            return ()
        most = site.shape[1]
        step = next((s for s in (8, 4, 2) if most >= 8 * s), 1)
        lengths = dict.fromkeys(max(step * round(most * share / step), step) for share in SHARES)
        return tuple(cls(length=n, side=site.padded) for n in lengths if n < most)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Prepend, ...]:
        """One ``Prepend`` for each of the inputs that belong together; ``statistics`` is not read.

        Raises:
            UnsupportedSite: the input holds no tokens, or the model only takes as many as it does.
        """
        if site.kind != "input" or not site.tokens or self.length > site.shape[1]:
            raise UnsupportedSite(f"{site.id}: only the tokens of a model that takes shorter sequences can be cut, and to no more than there are.")
        return tuple(Prepend(value, Crop(self.length, self.side), exact=True) for value in site.tokens)
