"""Smaller images: the model sees them at a lower resolution, and resizes them itself."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic
import torch
from torch import nn
from torch.nn import functional

from slimline.core.edits import Prepend
from slimline.core.plan import Method, Stage
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite

LARGE = 128  # pixels, from which on a step of an eighth is worth measuring too


class Resize(nn.Module):
    """Images ``[N, C, H, W]`` to ``[N, C, height, width]``: block means where that divides them evenly, bilinear interpolation else (with a wider filter below a half)."""

    def __init__(self, before: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        steps = tuple(b // s for b, s in zip(before, size, strict=True))
        self.block = steps if all(b == s * k for b, s, k in zip(before, size, steps, strict=True)) else None
        self.wide = any(2 * s < b for b, s in zip(before, size, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.block is not None:
            return functional.avg_pool2d(x, self.block)
        return functional.interpolate(x, self.size, mode="bilinear", antialias=self.wide)

    def extra_repr(self) -> str:
        return f"to {self.size[0]} x {self.size[1]}"


class Resolution(Method):
    """The image is resized to ``height`` x ``width`` before anything else.

    Example:
        >>> site = Site(id="#input.0", kind="input", op="input", shape=(1, 3, 32, 32), resizable=True)
        >>> [m.label for m in Resolution.candidates(site)]
        ['resolution(height=24, width=24)', 'resolution(height=16, width=16)']
    """

    name: ClassVar[str] = "resolution"
    stage: ClassVar[Stage] = "structure"
    kinds: ClassVar[tuple[Kind, ...]] = ("input",)
    needs: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = "Shows an image model smaller images: less time in every layer, the same weights; the resize is part of the artefact"
    reference: ClassVar[str] = (
        "Howard et al., MobileNets, 2017, section 3.4 (resolution multiplier); Touvron et al., NeurIPS 2019 (why norms are measured again)"
    )

    height: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)

    @classmethod
    def candidates(cls, site: Site) -> tuple[Resolution, ...]:
        """Three quarters and a half of each side; of large images seven eighths too. In steps of 32, 8, 4 or 2 pixels, so that strides divide them."""
        if site.kind != "input" or not site.resizable:
            return ()
        sides = site.shape[2:]
        fractions = (0.875, 0.75, 0.5) if min(sides) >= LARGE else (0.75, 0.5)
        step = next((s for s in (32, 8, 4) if min(sides) >= 4 * s), 2)
        sizes = dict.fromkeys(tuple(max(step * round(side * f / step), step) for side in sides) for f in fractions)
        return tuple(cls(height=h, width=w) for h, w in sizes if h * w < sides[0] * sides[1])

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Prepend, ...]:
        """One ``Prepend``; ``statistics`` is not read.

        Raises:
            UnsupportedSite: the input is no image, or the model only takes images of its size.
        """
        if site.kind != "input" or not site.resizable or len(site.shape) != 4:
            raise UnsupportedSite(f"{site.id}: only an image input of a model that takes other sizes can be resized.")
        return (Prepend(site.id, Resize((site.shape[2], site.shape[3]), (self.height, self.width))),)
