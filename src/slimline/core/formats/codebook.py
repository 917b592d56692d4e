"""A few shared values, and for each weight which of them it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic

from slimline.core.data import Data
from slimline.core.formats.affine import Affine, Float
from slimline.core.formats.format import packed
from slimline.errors import UnsupportedFormat

if TYPE_CHECKING:
    import torch

ROUNDS = 60  # of Lloyd's iteration at most; one dimension converges in far fewer


class Codebook(Data):
    """``k`` entries that all weights of a tensor share. ``w = codebook[index]``, times a scale per channel where ``values`` has one.

    ``values``: what the entries are. Integer entries (``Affine``) make integer weights, which an
    integer kernel takes as they are. ``zero``: entry 0 is 0 and stays so. ``common``: the entries are those of all layers of this format, stored
    once for all of them, so they count to none.

    Parts: ``indices`` uint8, of the weight's shape; ``codebook`` ``[k]`` float32, or int8 with
    integer entries; then ``scale`` as in ``values``.

    References:
        Han et al., "Deep Compression", ICLR 2016, section 3.

    Example:
        >>> import torch
        >>> f = Codebook(k=2)
        >>> f.decode(f.encode(torch.tensor([0.9, 1.1, -2.0, -2.0]))).tolist()
        [1.0, 1.0, -2.0, -2.0]
    """

    codes: ClassVar[str] = "indices"

    kind: Literal["codebook"] = "codebook"
    k: int = pydantic.Field(default=16, ge=2, le=256)
    values: Float | Affine = pydantic.Field(default=Float(), discriminator="kind")
    zero: bool = False
    common: bool = False

    @pydantic.model_validator(mode="after")
    def _saves_something(self) -> Codebook:
        if isinstance(self.values, Affine):
            if self.values.granularity == "per_group":
                raise UnsupportedFormat(f"{self.name}: a scale for every group of {self.values.group} beside shared entries: take one or the other.")
            if self.k > 2 * self.values.limit + 1:
                raise UnsupportedFormat(f"{self.name}: {self.k} entries out of {2 * self.values.limit + 1} integers: indices take as much as the integers.")
        return self

    @property
    def name(self) -> str:
        return f"{self.k} {self.values.name} {'common' if self.common else 'entries'}"

    @property
    def bits(self) -> int:
        return math.ceil(math.log2(self.k))

    @property
    def trained(self) -> tuple[str, ...]:
        return ("codebook", *self.values.trained)

    @property
    def grid(self) -> Affine | None:
        return self.values.grid

    @property
    def whole(self) -> bool:
        return False

    def relative(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight in the entries' own unit: divided by its scale, where there is one."""
        return weight / self.values.spread(parts["scale"], tuple(weight.shape)) if isinstance(self.values, Affine) else weight

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Entries by k-means from equal steps. For better ones give ``assign`` a codebook of your own (``numerics.codebook``)."""
        import torch

        w = weight.detach().float()
        tables: dict[str, torch.Tensor] = {}
        if isinstance(self.values, Affine):
            tables["scale"] = self.values.encode(w)["scale"]
        x = self.relative(w, tables).flatten()
        x = x[x != 0] if self.zero else x
        free = self.k - self.zero
        start = torch.linspace(float(x.min()), float(x.max()), free) if x.numel() else torch.zeros(free)
        tables["codebook"] = self.settled(lloyd(x, start))
        return self.assign(w, tables)

    def settled(self, entries: torch.Tensor) -> torch.Tensor:
        """A codebook ``[k]`` of float ``entries`` (``[k]``, or ``[k - 1]`` without the zero): rounded where it is integers."""
        import torch

        if isinstance(self.values, Affine):
            entries = entries.round().clamp(-self.values.limit, self.values.limit).to(torch.int8)
        return torch.cat((entries.new_zeros(1), entries)) if self.zero and len(entries) < self.k else entries

    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        entries = parts["codebook"].detach()
        entries = self.settled(entries) if entries.is_floating_point() else entries
        indices = nearest(self.relative(weight.detach().float(), parts), entries.float()).to(torch.uint8)
        found = {"indices": indices, "codebook": entries.clone()}
        return found | {name: parts[name].detach().float() for name in self.values.trained}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(self.values, Affine):
            return self.values.decode(self.integers(parts))
        return parts["codebook"][parts["indices"].long()]

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not isinstance(self.values, Affine):
            raise UnsupportedFormat(f"{self.name} are no integers.")
        return {"values": parts["codebook"][parts["indices"].long()], "scale": parts["scale"]}

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The gradient of an entry is the sum over its weights (Han et al., eq. 3); a weight may move to another entry."""
        entries = parts["codebook"].float()
        if isinstance(self.values, Affine):
            whole = entries.round().clamp(-self.values.limit, self.values.limit)
            entries = entries + (whole - entries).detach()
        x = self.relative(weight, parts)
        q = entries[nearest(x.detach(), entries.detach())]
        if isinstance(self.values, Affine):
            q = q * self.values.spread(parts["scale"], tuple(weight.shape))
        return q + (weight - weight.detach())

    def tables(self, shape: tuple[int, ...]) -> int:
        own = 0 if self.common else 4 * self.k if isinstance(self.values, Float) else self.k
        return own + self.values.tables(shape)

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int:
        shape = tuple(parts["indices"].shape)
        return packed(math.prod(shape), self.bits) + self.tables(shape)

    def estimate(self, shape: tuple[int, ...]) -> int:
        return packed(math.prod(shape), self.bits) + self.tables(shape)


def nearest(x: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Index of the entry nearest to each of ``x``; ``entries`` ``[k]`` in any order.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([0.2, 5.0]), torch.tensor([4.0, 0.0])).tolist()
        [1, 0]
    """
    import torch

    ordered, places = entries.sort(stable=True)
    found: torch.Tensor = places[torch.bucketize(x.contiguous(), (ordered[:-1] + ordered[1:]) / 2)]
    return found


def lloyd(x: torch.Tensor, entries: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """k-means of the values ``x`` ``[n]``, weighted, from the given ``entries`` ``[k]``: ascending, until they stay. An entry that gets no value stays where it is.

    References:
        Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982, method I.

    Example:
        >>> import torch
        >>> lloyd(torch.tensor([0.0, 1.0, 10.0]), torch.tensor([0.0, 9.0])).tolist()
        [0.5, 10.0]
    """
    import torch

    ordered, places = x.double().sort()
    mass = torch.ones_like(ordered) if weights is None else weights.double()[places]
    # Clusters are runs of the sorted values, so sums over them are differences of running sums.
    masses, moments = (torch.cat((ordered.new_zeros(1), t.cumsum(0))) for t in (mass, mass * ordered))
    found = entries.double().sort().values
    for _ in range(ROUNDS):
        edges = torch.searchsorted(ordered, (found[:-1] + found[1:]) / 2)
        edges = torch.cat((edges.new_zeros(1), edges, edges.new_full((1,), len(ordered))))
        total = masses[edges[1:]] - masses[edges[:-1]]
        new = torch.where(total > 0, (moments[edges[1:]] - moments[edges[:-1]]) / total.clamp_min(1e-30), found)
        if torch.equal(new, found):
            break
        found = new
    return found.float()
