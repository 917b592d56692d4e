"""What every codec promises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from slimline.core.formats.affine import Affine

NATIVE = (2, 4, 8)  # widths that ONNX has integer types for; others lie as planes of bits


@runtime_checkable
class Format(Protocol):
    """A codec. ``decode(encode(w))`` is the nearest representable weight, of the same shape and dtype.

    Each weight (of ``Product`` each run of weights) has one code in the part that ``codes`` names, which is ``bits`` bits a weight; the other parts are
    tables. ``trained`` names the tables that training moves (scales, centroids), the others stay.
    """

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int:
        """Bits of one weight's code, tables aside."""
        ...

    @property
    def codes(self) -> str: ...
    @property
    def trained(self) -> tuple[str, ...]: ...
    @property
    def grid(self) -> Affine | None:
        """The integers that decoded weights are, so that an integer kernel can take them; ``None``: they are floats."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it cuts the weight into groups, which pruning a channel would tear apart."""
        ...

    def encode(self, weight: torch.Tensor) -> dict[str, torch.Tensor]: ...
    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor: ...
    def assign(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parts of ``weight`` under the tables (and mask) in ``parts``: each weight gets the nearest code."""
        ...

    def project(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Nearest representable weight under the tables in ``parts``; gradients pass straight through to what is not masked, and to the tables."""
        ...

    def integers(self, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The decoded weight as parts of ``grid``; only where there is one."""
        ...

    def tables(self, shape: tuple[int, ...]) -> int:
        """Bytes of everything that is not a code, for a weight of this shape."""
        ...

    def nbytes(self, parts: Mapping[str, torch.Tensor]) -> int: ...
    def estimate(self, shape: tuple[int, ...]) -> int:
        """Bytes that a weight of this shape takes."""
        ...


def packed(count: int, bits: int) -> int:
    """Bytes of ``count`` codes: packed where ONNX has the type, else one plane of bits after the other, each of whole bytes.

    Example:
        >>> packed(10, 4), packed(10, 3), packed(10, 1)
        (5, 6, 2)
    """
    return math.ceil(count * bits / 8) if bits % 8 == 0 or bits in NATIVE else bits * math.ceil(count / 8)
