"""Where a decision can be taken."""

from __future__ import annotations

from typing import Literal

from slimline.core.data import Data

Kind = Literal["weight", "channels", "block", "input", "model"]
Op = Literal[
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "embedding",
    "lstm",
    "gru",
    "channels",
    "block",
    "input",
    "model",
]
INPUT = "#input."  # what the name of a model's input begins with, as ``#input.0``


class Member(Data):
    """How the channels of a site lie in one dimension of one parameter or buffer.

    ``dim`` of ``parameter``, from ``start`` on, reshaped to ``view`` = (outer, channels, inner):
    channel ``c`` owns the positions ``start + (o * channels + c) * inner + i``. Flattening
    ``(C, 7, 7)`` before a linear layer gives ``(1, C, 49)``; the four gates of an LSTM ``(4, H, 1)``.
    Where no view tells, as after a shuffle, ``places`` holds the positions of each channel, and ``view`` their numbers (1, channels, each).
    A ``parameter`` may also be an input of the model, ``#input.0``: ``dim`` counts the batch dimension.

    Example:
        >>> Member(parameter="fc.weight", dim=1, view=(1, 2, 3)).positions((1,))
        [3, 4, 5]
    """

    parameter: str
    dim: int
    view: tuple[int, int, int]
    start: int = 0
    places: tuple[tuple[int, ...], ...] = ()

    def positions(self, channels: tuple[int, ...]) -> list[int]:
        """Positions along ``dim`` that the given channels own, in ascending order."""
        if self.places:
            return sorted(p for c in channels for p in self.places[c])
        outer, count, inner = self.view
        return [self.start + (o * count + c) * inner + i for o in range(outer) for c in sorted(channels) for i in range(inner)]


class Count(Data):
    """An attribute of a module that counts the channels: ``num_heads``, or the width of all heads. It is ``width`` times their number."""

    module: str
    name: str
    width: int = 1


class Site(Data):
    """A place where one decision is taken.

    ``kind`` is ``weight`` (one parameter and how it is stored and executed; ``id`` is its name, as
    ``stages.0.conv1.weight``), ``channels`` (all dimensions that must be pruned together; ``id`` is
    ``MODULE#channels`` of the first producer), ``block`` (a module that can be replaced by the
    identity; ``id`` is ``MODULE#block``), ``input`` (what enters the model; ``id`` is ``#input.K``, its
    name in the exported program) or ``model`` (everything at once; ``id`` is ``#model``).

    ``shape``: of the weight; ``(C,)`` for channels; the value's shape (batch 1) for a block or an input.
    ``members``: for channels every dimension that goes along; for a block its parameters; for an input its
    own dimension of features and every dimension that goes along, or nothing if its features must all stay.
    ``counts``: attributes that the model's code reads and that follow their number.
    ``minimum``: the fewest channels that may stay. ``resizable``: an image input of another height and width runs too.
    ``tokens``: of an input of token ids every input whose positions go along (itself, masks), where shorter ones run, too; ``padded``: the side on which they are filled up;
    ``mask``: the one of them that tells where, by the value ``padding``, if what is there changes nothing and shapes may depend on it; else nothing.
    ``parts``: of the model, its sites of blocks and channels; its ``shape`` is their number.
    """

    id: str
    kind: Kind
    op: Op
    shape: tuple[int, ...]
    members: tuple[Member, ...] = ()
    counts: tuple[Count, ...] = ()
    minimum: int = 1
    resizable: bool = False
    tokens: tuple[str, ...] = ()
    padded: Literal["start", "end"] = "end"
    mask: str = ""
    padding: int = 0
    parts: tuple[Site, ...] = ()

    @property
    def features(self) -> int:
        """How many channels can be chosen from: of a channels site, or of an input whose features can go; else 0."""
        return self.members[0].view[1] if self.members and self.kind in ("channels", "input") else self.shape[0] if self.kind == "channels" else 0

    @property
    def module(self) -> str:
        """Path of the module that the site is named after."""
        return self.id.split("#")[0] if "#" in self.id else self.id.rpartition(".")[0]


class Refusal(Data):
    """Something that cannot be compressed, and why."""

    where: str
    reason: str
