"""torchvision's attention in shifted windows (Swin, Swin v2) when it has lost heads or width."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slimline.errors import UnsupportedSite

TORCHVISION = ("torchvision.models.swin_transformer", ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"))
MASKED = -100.0  # what torchvision adds where two places of a window are no neighbours


class NarrowWindows(nn.Module):
    """``ShiftedWindowAttention`` with the same parameters, called the same way, which does not take the width of a head from the width of what enters.

    torchvision's divides the width of its input by its heads and gives its heads' results back in that width, so it can lose neither.
    Input and output: ``[N, H, W, C]``. ``kind`` is the class that it was, which still gives the bias of relative positions.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, section 3.2; "Swin Transformer V2", CVPR 2022, eq. 2 (cosine attention).
    """

    kind: Any
    head_dim: int
    num_heads: int
    window_size: list[int]
    shift_size: list[int]
    qkv: nn.Linear
    proj: nn.Linear

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether it is one of torchvision's, or has become one of these."""
        kind = type(module)
        return kind is cls or (kind.__module__ == TORCHVISION[0] and kind.__name__ in TORCHVISION[1])

    @classmethod
    def take_over(cls, path: str, module: nn.Module, before: int) -> None:
        """Make ``module``, whose parameters have been cut, one of these. ``before``: rows of ``qkv.weight`` until then.

        Raises:
            UnsupportedSite: its rows are no whole number of heads.
        """
        assert isinstance(module.qkv, nn.Linear) and isinstance(module.num_heads, int)
        width = module.head_dim if isinstance(module, cls) else before // 3 // module.num_heads
        rows = module.qkv.weight.shape[0]
        if rows % (3 * width):
            raise UnsupportedSite(f"{path}: {rows} rows are no whole number of heads of width {width}.")
        if not isinstance(module, cls):
            module.__dict__["kind"] = type(module)
        module.__class__ = cls
        module.__dict__.update(head_dim=width, num_heads=rows // 3 // width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = self.kind.get_relative_position_bias(self)
        n, height, width, channels = x.shape
        tall, wide = self.window_size
        x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
        rows, columns = x.shape[1], x.shape[2]
        shift = [0 if tall >= rows else self.shift_size[0], 0 if wide >= columns else self.shift_size[1]]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        x = x.view(n, rows // tall, tall, columns // wide, wide, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, tall * wide, channels)
        q, k, v = F.linear(x, self.qkv.weight, self._qkv_bias()).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = getattr(self, "logit_scale", None)
        if scale is not None:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * torch.clamp(scale, max=math.log(100.0)).exp()
        else:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        scores = scores + bias
        if any(shift):
            mask = self._mask(x, rows, columns, shift)
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x.view(n, rows // tall, columns // wide, tall, wide, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, -1)
        if any(shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def _qkv_bias(self) -> torch.Tensor | None:
        """Keys have none where attention is by cosine."""
        bias = self.qkv.bias
        if bias is None or getattr(self, "logit_scale", None) is None:
            return bias
        q, k, v = bias.chunk(3)
        return torch.cat([q, torch.zeros_like(k), v])

    def _mask(self, x: torch.Tensor, rows: int, columns: int, shift: list[int]) -> torch.Tensor:
        """``[windows, T, T]``: what was far apart before the roll stays apart."""
        part, (tall, wide) = x.new_zeros((rows, columns)), self.window_size
        down, across = ([(0, -size), (-size, -by), (-by, None)] for size, by in ((tall, shift[0]), (wide, shift[1])))
        for i, (a, b) in enumerate(down):
            for j, (c, d) in enumerate(across):
                part[a:b, c:d] = 3 * i + j
        part = part.view(rows // tall, tall, columns // wide, wide).permute(0, 2, 1, 3).reshape(-1, tall * wide)
        return torch.where(part[:, None] == part[:, :, None], 0.0, MASKED)
