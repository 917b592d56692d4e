"""Shorter sequences: the model sees fewer tokens, or none of the padding, and leaves out the rest itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic

from slimline.core.edits import Prepend
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.entry import Crop, Trim

SHARES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


class SequenceLength(Method):
    """Token ids, and the masks and positions beside them, are cut to ``length`` positions before anything else (``None``: not). ``side``: where; texts are padded there.

    ``trim``: and to the longest text of the batch, at every call. What only padding held changes nothing, so that alone loses nothing; it is
    offered where the mask says what padding is and the runtime takes shapes that depend on it.

    Example:
        >>> site = Site(id="#input.0", kind="input", op="input", shape=(1, 64), tokens=("#input.0", "#input.1"))
        >>> [m.length for m in SequenceLength.candidates(site)]
        [56, 48, 40, 32, 24, 16]
        >>> [m.length for m in SequenceLength.candidates(site.model_copy(update={"mask": "#input.1"})) if m.trim]
        [None, 56, 48, 40, 32, 24, 16]
    """

    name: ClassVar[str] = "sequence_length"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("input",)
    needs: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = "Cuts token sequences that are padded to more than most of them need: less time in every layer, the same weights"
    reference: ClassVar[str] = (
        "Devlin et al., BERT, NAACL 2019, appendix A.2 (attention is quadratic in the sequence length, so 90 % of the steps take shorter ones)"
    )

    length: int | None = pydantic.Field(default=None, gt=0)
    side: Literal["start", "end"] = "end"
    trim: bool = False

    @property
    def caveat(self) -> str:
        found = []
        if self.length is not None:
            found.append(
                f"texts longer than those of your samples: the artefact cuts what it is given to {self.length} positions, so compress again where texts grow"
            )
        if self.trim:
            found.append(
                "latency of other texts: padding costs nothing, so latencies and multiply-adds are those of a text of the usual length among your samples; longer ones take longer"
            )
        return "; ".join(found)

    @classmethod
    def candidates(cls, site: Site) -> tuple[SequenceLength, ...]:
        """From seven eighths to a quarter of the positions, in steps of 8, or of fewer where there are few; where padding can be cut, that always, and alone first."""
        if site.kind != "input" or not site.tokens:
            return ()
        most = site.shape[1]
        step = next((s for s in (8, 4, 2) if most >= 8 * s), 1)
        lengths = dict.fromkeys(max(step * round(most * share / step), step) for share in SHARES)
        shorter = [n for n in lengths if n < most]
        if site.mask:
            return tuple(cls(length=n, side=site.padded, trim=True) for n in (None, *shorter))
        return tuple(cls(length=n, side=site.padded) for n in shorter)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Prepend, ...]:
        """One ``Prepend`` for each of the inputs that belong together, or for all of them; ``statistics`` is not read.

        Raises:
            UnsupportedSite: the input holds no tokens, the model only takes as many as it does, or what is padding cannot be told at every call.
        """
        length = self.length or site.shape[-1]
        if site.kind != "input" or not site.tokens or length > site.shape[1] or (self.length is None and not self.trim):
            raise UnsupportedSite(f"{site.id}: only the tokens of a model that takes shorter sequences can be cut, and to no more than there are.")
        if not self.trim:
            return tuple(Prepend(value, Crop(length, self.side), exact=True) for value in site.tokens)
        if not site.mask:
            raise UnsupportedSite(f"{site.id}: nothing says what is padding, or the runtime takes no shapes that depend on it; cut without trim.")
        first, *along = site.tokens
        return (Prepend(first, Trim(length, self.side, site.padding, site.tokens.index(site.mask)), exact=True, along=tuple(along)),)
