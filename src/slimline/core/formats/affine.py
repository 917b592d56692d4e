"""Floats as they are, and integers times a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic

from slimline.core.data import Data
from slimline.core.formats.format import packed
from slimline.errors import UnsupportedFormat

if TYPE_CHECKING:
    import torch

Granularity = Literal["per_tensor", "per_channel", "per_group"]


class Float(Data):
    """The weight as it is, in float32."""

    kind: Literal["float"] = "float"
    bits: ClassVar[int] = 32
    codes: ClassVar[str] = "values"
    trained: ClassVar[tuple[str, ...]] = ()
    grid: ClassVar[None] = None
    whole: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "float32"

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": weight.detach().clone()}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return parts["values"]

    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.encode(weight)

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return weight

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise UnsupportedFormat("float32 weights are no integers.")

    def tables(self, shape: tuple[int, ...]) -> int:
        return 0

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int:
        return 4 * parts["values"].numel()

    def estimate(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)


class Affine(Data):
    """Symmetric integers times a scale: ``w = scale * q`` with ``|q| <= 2**(bits-1) - 1``.

    ``axis`` is the channel dimension of the weight (``per_channel``); with ``per_group`` the last
    dimension is cut into runs of ``group`` values with a scale each. Bits below 8 are packed in
    the file; 2 and 4 are what ONNX stores natively. ``reduce_range``: 8 bits in the file, of which one stays free (``|q| <= 63``),
    for integer kernels that add two products in 16 bits and would saturate. ``power_of_two``: scales are powers of two, so that hardware without a
    multiplier to spare shifts instead; training keeps them so.

    Parts: ``values`` int8, of the weight's shape; ``scale`` float32, ``[]``, ``[channels]`` or
    ``[..., groups]``.

    References:
        Zhou et al., "Incremental Network Quantization", ICLR 2017, and Jain et al., "Trained Quantization Thresholds", MLSys 2020, section 3.2 (powers of two).
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", CVPR 2018, eq. 1 (with zero point 0).

    Example:
        >>> import torch
        >>> f = Affine(bits=4)
        >>> parts = f.encode(torch.tensor([[-7.0, 1.0], [0.7, 0.2]]))
        >>> parts["values"].tolist()
        [[-7, 1], [7, 2]]
    """

    codes: ClassVar[str] = "values"
    trained: ClassVar[tuple[str, ...]] = ("scale",)

    kind: Literal["affine"] = "affine"
    bits: Literal[2, 4, 8] = 8
    granularity: Granularity = "per_channel"
    axis: int = 0
    group: int = pydantic.Field(default=0, ge=0)
    reduce_range: bool = False
    power_of_two: bool = False

    @pydantic.model_validator(mode="after")
    def _group_goes_with_granularity(self) -> Affine:
        if (self.granularity == "per_group") != (self.group > 0):
            raise UnsupportedFormat(f"granularity {self.granularity} with group {self.group}: a group size goes with per_group, and only with it.")
        if self.reduce_range and self.bits != 8:
            raise UnsupportedFormat(f"reduce_range with {self.bits} bits: it frees one of 8.", hint="Use 8 bits, or leave reduce_range out.")
        return self

    @property
    def name(self) -> str:
        scales = {"per_tensor": "/tensor", "per_channel": "", "per_group": f"/g{self.group}"}[self.granularity]
        return f"int{self.bits - self.reduce_range}{scales}" + ("/2^n" if self.power_of_two else "")

    @property
    def grid(self) -> Affine:
        return self

    @property
    def whole(self) -> bool:
        return self.granularity == "per_group"

    @property
    def limit(self) -> int:
        """Largest magnitude of an integer."""
        return int(2 ** (self.bits - self.reduce_range - 1)) - 1

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.granularity == "per_group" and shape[-1] % self.group:
            raise UnsupportedFormat(f"{self.name}: the last dimension of {tuple(shape)} is no multiple of group {self.group}.")

    def spread(self, scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """``scale`` repeated or reshaped so that it multiplies a weight of ``shape``."""
        if self.granularity == "per_tensor":
            return scale.reshape(())
        if self.granularity == "per_channel":
            return scale.reshape([-1 if d == self.axis else 1 for d in range(len(shape))])
        return scale.repeat_interleave(self.group, dim=-1)

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Min-max scales. For better ranges give ``quantize`` a scale of your own."""
        shape = tuple(weight.shape)
        self._check(shape)
        w = weight.detach().float()
        if self.granularity == "per_tensor":
            peak = w.abs().max()
        elif self.granularity == "per_channel":
            peak = w.abs().movedim(self.axis, 0).reshape(shape[self.axis], -1).amax(1)
        else:
            peak = w.abs().reshape(*shape[:-1], -1, self.group).amax(-1)
        scale = (peak / self.limit).clamp_min(1e-12)
        return self.quantize(w, scale.log2().ceil().exp2() if self.power_of_two else scale)

    def snapped(self, scale: torch.Tensor) -> torch.Tensor:
        """``scale`` as it may be: the nearest power of two where it must be one.

        Example:
            >>> import torch
            >>> Affine(power_of_two=True).snapped(torch.tensor([0.3, 3.0])).tolist()
            [0.25, 4.0]
        """
        return scale.log2().round().exp2() if self.power_of_two else scale

    def quantize(self, weight: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parts of ``weight`` under the given ``scale``, rounded to nearest."""
        import torch

        shape = tuple(weight.shape)
        self._check(shape)
        scale = self.snapped(scale)
        q = torch.round(weight.detach().float() / self.spread(scale, shape)).clamp_(-self.limit, self.limit)
        return {"values": q.to(torch.int8), "scale": scale.detach().float()}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = parts["values"]
        return values.float() * self.spread(parts["scale"], tuple(values.shape))

    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.quantize(weight, parts["scale"])

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(parts)

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        scale = parts["scale"]
        if self.power_of_two:
            scale = scale + (self.snapped(scale) - scale).detach()
        s = self.spread(scale, tuple(weight.shape))
        x = weight / s
        q = x + (torch.round(x) - x).detach()
        return q.clamp(-self.limit, self.limit) * s

    def scales(self, shape: tuple[int, ...]) -> int:
        """How many scales a weight of ``shape`` has."""
        if self.granularity == "per_tensor":
            return 1
        return shape[self.axis] if self.granularity == "per_channel" else math.prod(shape) // self.group

    def tables(self, shape: tuple[int, ...]) -> int:
        return 4 * self.scales(shape)

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int:
        return packed(parts["values"].numel(), self.bits) + 4 * parts["scale"].numel()

    def estimate(self, shape: tuple[int, ...]) -> int:
        return packed(math.prod(shape), self.bits) + self.tables(shape)
