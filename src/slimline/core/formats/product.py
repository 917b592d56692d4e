"""Runs of weights that share whole vectors."""

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

ROUNDS = 25  # of k-means at most
DRAWN, TRIALS = 2**13, 4  # of k-means' start: vectors that are drawn from, and draws for each entry
FITTED = 2**16  # vectors that entries are fitted to: 256 for each of the most that there are
CHUNK = 2**24  # distances that are held at once


class Product(Data):
    """``k`` vectors of ``d`` weights that all runs along the inputs share: ``log2(k) / d`` bits a weight, below 1 where ``d`` is large.

    ``values``: what the entries are; with integers (``Affine``, a scale per channel) the weights are integers, which an integer kernel takes as they are.
    ``axis``: the dimension of the outputs.

    Parts: ``indices`` uint8, of the weight's shape with the inputs divided by ``d``; ``codebook`` ``[k, d]`` float32, or int8 with integer entries;
    then ``scale`` as in ``values``.

    References:
        Gong et al., "Compressing Deep Convolutional Networks using Vector Quantization", 2014, section 3.3.
        Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020, section 3.2.

    Example:
        >>> import torch
        >>> f = Product(k=2, d=2)
        >>> f.decode(f.encode(torch.tensor([[1.0, 3.0, -2.0, 0.5], [1.0, 3.0, 1.0, 3.0]]))).tolist()
        [[1.0, 3.0, -2.0, 0.5], [1.0, 3.0, 1.0, 3.0]]
    """

    codes: ClassVar[str] = "indices"
    whole: ClassVar[bool] = True

    kind: Literal["product"] = "product"
    k: int = pydantic.Field(default=256, ge=2, le=256)
    d: int = pydantic.Field(default=4, ge=2)
    values: Float | Affine = pydantic.Field(default=Float(), discriminator="kind")
    axis: Literal[0, 1] = 0

    @pydantic.model_validator(mode="after")
    def _one_scale_for_a_vector(self) -> Product:
        if isinstance(self.values, Affine) and (
            self.values.granularity == "per_group" or (self.values.granularity == "per_channel" and self.values.axis != self.axis)
        ):
            raise UnsupportedFormat(f"{self.name}: a vector's entries need one scale: per channel along dimension {self.axis}, or per tensor.")
        return self

    @property
    def name(self) -> str:
        return f"{self.k} {self.values.name} x{self.d}"

    @property
    def bits(self) -> int:
        """Of one weight, rounded up; ``nbytes`` is exact."""
        return math.ceil(self.index_bits / self.d)

    @property
    def index_bits(self) -> int:
        """Of one vector's index."""
        return math.ceil(math.log2(self.k))

    @property
    def trained(self) -> tuple[str, ...]:
        return ("codebook", *self.values.trained)

    @property
    def grid(self) -> Affine | None:
        return self.values.grid

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ``UnsupportedFormat`` where runs do not divide the inputs."""
        if len(shape) < 2 or shape[1 - self.axis] % self.d:
            raise UnsupportedFormat(f"{self.name}: dimension {1 - self.axis} of {shape} is no multiple of {self.d}.")

    def runs(self, weight: torch.Tensor) -> torch.Tensor:
        """``[..., d]``, with the dimensions of the indices before it."""
        found: torch.Tensor = weight.unflatten(1 - self.axis, (-1, self.d)).movedim(2 - self.axis, -1)
        return found

    def joined(self, runs: torch.Tensor) -> torch.Tensor:
        """The inverse of ``runs``."""
        return runs.movedim(-1, 2 - self.axis).flatten(1 - self.axis, 2 - self.axis)

    def relative(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight in the entries' own unit: divided by its scale, where there is one."""
        return weight / self.values.spread(parts["scale"], tuple(weight.shape)) if isinstance(self.values, Affine) else weight

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Entries by k-means. For better ones give ``assign`` a codebook of your own."""
        self.check(tuple(weight.shape))
        w = weight.detach().float()
        tables: dict[str, torch.Tensor] = {}
        if isinstance(self.values, Affine):
            tables["scale"] = self.values.encode(w)["scale"]
        tables["codebook"] = self.settled(cluster(self.runs(self.relative(w, tables)).reshape(-1, self.d), self.k))
        return self.assign(w, tables)

    def settled(self, entries: torch.Tensor) -> torch.Tensor:
        """A codebook ``[k, d]`` of float ``entries``: rounded where it is integers."""
        import torch

        return entries.round().clamp(-self.values.limit, self.values.limit).to(torch.int8) if isinstance(self.values, Affine) else entries

    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        self.check(tuple(weight.shape))
        entries = parts["codebook"].detach()
        entries = self.settled(entries) if entries.is_floating_point() else entries
        runs = self.runs(self.relative(weight.detach().float(), parts))
        indices = nearest_vector(runs.reshape(-1, self.d), entries.float()).reshape(runs.shape[:-1]).to(torch.uint8)
        found = {"indices": indices, "codebook": entries.clone()}
        return found | {name: parts[name].detach().float() for name in self.values.trained}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(self.values, Affine):
            return self.values.decode(self.integers(parts))
        return self.joined(parts["codebook"][parts["indices"].long()]).contiguous()

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not isinstance(self.values, Affine):
            raise UnsupportedFormat(f"{self.name} are no integers.")
        return {"values": self.joined(parts["codebook"][parts["indices"].long()]).contiguous(), "scale": parts["scale"]}

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The gradient of an entry is the sum over its runs; a run may move to another vector."""
        entries = parts["codebook"].float()
        if isinstance(self.values, Affine):
            whole = entries.round().clamp(-self.values.limit, self.values.limit)
            entries = entries + (whole - entries).detach()
        runs = self.runs(self.relative(weight, parts))
        places = nearest_vector(runs.detach().reshape(-1, self.d), entries.detach())
        q = self.joined(entries[places].reshape(runs.shape))
        if isinstance(self.values, Affine):
            q = q * self.values.spread(parts["scale"], tuple(weight.shape))
        return q + (weight - weight.detach())

    def tables(self, shape: tuple[int, ...]) -> int:
        return (4 if isinstance(self.values, Float) else 1) * self.k * self.d + self.values.tables(shape)

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int:
        shape = list(parts["indices"].shape)
        shape[1 - self.axis] *= self.d
        return packed(parts["indices"].numel(), self.index_bits) + self.tables(tuple(shape))

    def estimate(self, shape: tuple[int, ...]) -> int:
        return packed(math.prod(shape) // self.d, self.index_bits) + self.tables(shape)


def nearest_vector(x: torch.Tensor, entries: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Index of the entry ``[k, d]`` nearest to each of ``x [n, d]``, each square counted ``weights [n, d]`` times; of equal ones the first.

    Example:
        >>> import torch
        >>> nearest_vector(torch.tensor([[0.9, 0.2], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [0, 1]
    """
    import torch

    found = []
    for start in range(0, len(x), step := max(1, CHUNK // len(entries))):
        part = x[start : start + step]
        if weights is None:
            far = entries.square().sum(1) - 2 * part @ entries.T
        else:
            w = weights[start : start + step]
            far = w @ entries.square().T - 2 * (w * part) @ entries.T
        found.append(far.argmin(1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def cluster(x: torch.Tensor, k: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """k-means of the vectors ``x [n, d]``, at most ``FITTED`` of them: entries ``[k, d]``. ``weights [n, d]``: how much each square counts.

    The start is drawn from at most ``DRAWN`` of the vectors, each entry the best of ``TRIALS`` that are drawn with a chance in proportion to their squared distance from
    those before, by a generator of its own. An entry without vectors takes the one that is worst off.

    References:
        Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007, section 2.2; the best of several draws as in scikit-learn.
    """
    import torch

    x = x[:: -(-len(x) // FITTED)].float()
    w = torch.ones_like(x) if weights is None else weights[:: -(-len(weights) // FITTED)].float()
    draw = torch.Generator().manual_seed(0)
    few, counted = x[:: -(-len(x) // DRAWN)], w[:: -(-len(x) // DRAWN)]
    entries = torch.zeros(k, x.shape[1])
    far = (counted * few.square()).sum(1)
    for i in range(k):
        if float(far.sum()) <= 0 and i:
            break
        running = far.double().cumsum(0)
        drawn = torch.searchsorted(running, torch.rand(TRIALS if i else 1, generator=draw, dtype=torch.float64) * running[-1]).clamp(max=len(few) - 1)
        distances = (counted * (few - few[drawn, None]).square()).sum(2)
        distances = torch.minimum(distances, far) if i else distances
        best = int(distances.sum(1).argmin())
        entries[i], far = few[drawn[best]], distances[best]
    for _ in range(ROUNDS):
        places = nearest_vector(x, entries, None if weights is None else w)
        mass = torch.zeros(k, x.shape[1]).index_add_(0, places, w)
        sums = torch.zeros(k, x.shape[1]).index_add_(0, places, w * x)
        used = torch.bincount(places, minlength=k) > 0
        new_entries = torch.where(mass > 0, sums / mass.clamp_min(1e-30), entries)
        far = (w * (x - new_entries[places]).square()).sum(1)
        for empty in (~used).nonzero().flatten().tolist():
            worst = int(far.argmax())
            if float(far[worst]) <= 0:
                break
            new_entries[empty], far[worst] = x[worst], 0.0
        if torch.equal(new_entries, entries):
            break
        entries = new_entries
    return entries
