"""Which weights are not zero, and what those are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import pydantic

from slimline.core.data import Data
from slimline.core.formats.affine import Affine, Float
from slimline.core.formats.codebook import Codebook
from slimline.core.formats.format import packed
from slimline.errors import UnsupportedFormat

if TYPE_CHECKING:
    import torch


class Masked(Data):
    """A mask times values: one bit for each weight, and a code for each that is kept.

    ``values``: how the kept ones are stored. ``sparsity``: the share of zeros; or a pattern: ``n`` of
    every ``m`` weights along the inputs are kept. ``block``: (outputs, inputs) that go or stay together, with one bit of the mask
    for all of them. Where the mask costs more than the zeros save, all codes are stored and the mask is not.

    Parts: ``mask`` bool, of the weight's shape, and the parts of ``values``, zero where masked.

    References:
        Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, section 3 (n of m).
        Narang et al., "Block-Sparse Recurrent Neural Networks", 2017, section 3 (blocks).

    Example:
        >>> import torch
        >>> f = Masked(values=Affine(bits=8), sparsity=0.5)
        >>> f.decode(f.encode(torch.tensor([[1.27, 0.1, -0.5, 0.2]]))).tolist()
        [[1.2699999809265137, 0.0, -0.5, 0.0]]
    """

    kind: Literal["masked"] = "masked"
    values: Float | Affine | Codebook = pydantic.Field(default=Float(), discriminator="kind")
    sparsity: float = pydantic.Field(default=0.5, gt=0, lt=1)
    n: int = pydantic.Field(default=0, ge=0)
    m: int = pydantic.Field(default=0, ge=0)
    axis: int = pydantic.Field(default=1, ge=0)
    """The dimension of inputs, which a pattern cuts into runs of ``m``."""
    block: tuple[pydantic.PositiveInt, pydantic.PositiveInt] = (1, 1)

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Masked:
        if self.values.whole:
            raise UnsupportedFormat(f"{self.name}: scales for groups of weights that are mostly zero cost more than they gain.")
        if isinstance(self.values, Codebook) and not self.values.zero:
            raise UnsupportedFormat(f"{self.name}: masked weights are index 0, so entry 0 must be zero (Codebook(zero=True)).")
        if (self.n > 0) != (self.m > 0) or (self.m and self.n >= self.m):
            raise UnsupportedFormat(f"Masked: keeping {self.n} of every {self.m} is no pattern.")
        if self.m and not math.isclose(self.sparsity, 1 - self.n / self.m):
            raise UnsupportedFormat(f"{self.name}: {self.n} of {self.m} is a sparsity of {1 - self.n / self.m:g}, not {self.sparsity:g}.")
        if self.block != (1, 1) and (self.m or self.axis > 1):
            raise UnsupportedFormat(f"Masked: blocks of {self.block[0]} x {self.block[1]} and a pattern of {self.n}:{self.m}: take one or the other.")
        return self

    @classmethod
    def pattern(cls, n: int, m: int, values: Float | Affine | Codebook = Float(), axis: int = 1) -> Masked:
        """``n`` of every ``m`` along dimension ``axis``.

        Example:
            >>> Masked.pattern(2, 4, Affine()).name
            'int8 2:4'
        """
        return cls(values=values, sparsity=1 - n / m if m > n else 0.5, n=n, m=m, axis=axis)

    @property
    def name(self) -> str:
        if self.m:
            return f"{self.values.name} {self.n}:{self.m}"
        return f"{self.values.name}@{100 * self.sparsity:g}%" + (f"/{self.block[0]}x{self.block[1]}" if self.block != (1, 1) else "")

    @property
    def bits(self) -> int:
        return self.values.bits

    @property
    def codes(self) -> str:
        return self.values.codes

    @property
    def trained(self) -> tuple[str, ...]:
        return self.values.trained

    @property
    def grid(self) -> Affine | None:
        return self.values.grid

    @property
    def whole(self) -> bool:
        return self.m > 0 or self.block != (1, 1)

    @property
    def together(self) -> int:
        """How many weights share a bit of the mask."""
        return self.block[0] * self.block[1]

    def kept(self, count: int) -> int:
        """How many of ``count`` weights are not masked.

        Example:
            >>> Masked(sparsity=0.75).kept(10)
            2
        """
        if self.m:
            return count * self.n // self.m
        blocks = count // self.together
        return (blocks - round(blocks * self.sparsity)) * self.together

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.m and (len(shape) <= self.axis or shape[self.axis] % self.m):
            raise UnsupportedFormat(f"{self.name}: dimension {self.axis} of {shape} is no multiple of {self.m}.")
        if self.block != (1, 1) and (len(shape) < 2 or shape[1 - self.axis] % self.block[0] or shape[self.axis] % self.block[1]):
            raise UnsupportedFormat(f"{self.name}: {shape} does not divide into blocks of {self.block[0]} outputs by {self.block[1]} inputs.")

    def steps(self, dims: int) -> tuple[int, ...]:
        """How many positions of each of ``dims`` dimensions a block covers.

        Example:
            >>> Masked(block=(4, 2)).steps(3)
            (4, 2, 1)
        """
        sizes = {1 - self.axis: self.block[0], self.axis: self.block[1]} if self.block != (1, 1) else {}
        return tuple(sizes.get(d, 1) for d in range(dims))

    def masked_by(self, scores: torch.Tensor) -> torch.Tensor:
        """The mask that keeps the highest ``scores`` (of the weight's shape), of blocks the highest sums; of equal ones the first.

        Raises:
            UnsupportedFormat: the pattern or the blocks do not fit the shape.
        """
        import torch

        shape = tuple(scores.shape)
        self._check(shape)
        if self.m:
            runs = scores.movedim(self.axis, -1)
            runs = runs.reshape(*runs.shape[:-1], -1, self.m)
            best = runs.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
            mask = torch.zeros(runs.shape, dtype=torch.bool).scatter_(-1, best, True)
            return mask.flatten(-2).movedim(-1, self.axis).contiguous()
        if self.block == (1, 1):
            best = scores.flatten().argsort(descending=True, stable=True)[: self.kept(scores.numel())]
            return torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, best, True).reshape(shape)
        steps = self.steps(len(shape))
        cut = [n for size, step in zip(shape, steps, strict=True) for n in (size // step, step)]
        summed = scores.reshape(cut).sum(tuple(range(1, 2 * len(shape), 2)))
        best = summed.flatten().argsort(descending=True, stable=True)[: self.kept(scores.numel()) // self.together]
        chosen = torch.zeros(summed.numel(), dtype=torch.bool).index_fill_(0, best, True).reshape([n for size in summed.shape for n in (size, 1)])
        return chosen.expand(cut).reshape(shape)

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The largest magnitudes are kept. For another mask give ``assign`` one."""
        w = weight.detach()
        mask = self.masked_by(w.abs())
        return self.assign(w, {"mask": mask, **self.values.encode(w * mask)})

    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = parts["mask"]
        found = self.values.assign(weight.detach() * mask, parts)
        found[self.codes] = found[self.codes].masked_fill(~mask, 0)
        return {**found, "mask": mask.clone()}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.values.decode(parts)

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: part for name, part in self.values.integers(parts).items() if name != "mask"}

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A masked weight gets no gradient and stays zero."""
        return self.values.project(weight * parts["mask"], parts) * parts["mask"]

    def tables(self, shape: tuple[int, ...]) -> int:
        return self.values.tables(shape)

    @property
    def compact(self) -> bool:
        """Whether a mask and the kept codes take less than all codes."""
        return 1 / self.together + (1 - self.sparsity) * self.bits < self.bits

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int:
        return self._bytes(tuple(parts["mask"].shape), int(parts["mask"].sum()))

    def estimate(self, shape: tuple[int, ...]) -> int:
        return self._bytes(shape, self.kept(math.prod(shape)))

    def _bytes(self, shape: tuple[int, ...], kept: int) -> int:
        count = math.prod(shape)
        codes = packed(count // self.together, 1) + packed(kept, self.bits) if self.compact else packed(count, self.bits)
        return codes + self.tables(shape)
