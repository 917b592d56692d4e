"""torchvision's attentions in windows (Swin, Swin v2, the video Swin, MaxViT) when they have lost heads or width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from slimline.errors import UnsupportedSite

MASKED = -100.0  # what torchvision adds where two places of a window are no neighbours


class NarrowHeads(nn.Module):
    """An attention of torchvision's, with the same parameters and called the same way, which does not take its heads' width from the width of what enters.

    ``known``: module -> the classes there that it takes over. ``joint``: the layer that makes queries, keys and values, in this order. ``heads``: the
    attribute that counts heads. ``kind`` is the class that it was, which still gives the bias of relative positions.
    """

    known: ClassVar[Mapping[str, tuple[str, ...]]]
    joint: ClassVar[str]
    heads: ClassVar[str]
    kind: Any
    head_dim: int

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether it is one of torchvision's, or has become one of these."""
        kind = type(module)
        return kind is cls or kind.__name__ in cls.known.get(kind.__module__, ())

    @classmethod
    def take_over(cls, path: str, module: nn.Module, before: int) -> None:
        """Make ``module``, whose parameters have been cut, one of these. ``before``: rows of ``joint``'s weight until then.

        Raises:
            UnsupportedSite: its rows are no whole number of heads.
        """
        joint = module.get_submodule(cls.joint)
        assert isinstance(joint, nn.Linear)
        width, rows = module.__dict__.get("head_dim") or before // 3 // getattr(module, cls.heads), joint.weight.shape[0]
        if rows % (3 * width):
            raise UnsupportedSite(f"{path}: {rows} rows are no whole number of heads of width {width}.")
        if not isinstance(module, cls):
            module.__dict__["kind"] = type(module)
        module.__class__ = cls
        module.__dict__.update({"head_dim": width, cls.heads: rows // 3 // width})


class NarrowPartition(NarrowHeads):
    """``RelativePositionalMultiHeadAttention``, which gives its heads' results back in the width of what enters. Input and output: ``[N, windows, places, C]``.

    References:
        Tu et al., "MaxViT: Multi-Axis Vision Transformer", ECCV 2022, section 3.1.
    """

    known = {"torchvision.models.maxvit": ("RelativePositionalMultiHeadAttention",)}
    joint, heads = "to_qkv", "n_heads"
    to_qkv: nn.Linear
    merge: nn.Linear
    scale_factor: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, -1, self.head_dim)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.kind.get_relative_positional_bias(self)
        found: torch.Tensor = self.merge((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
        return found


class NarrowWindows(NarrowHeads):
    """``ShiftedWindowAttention``, which divides the width of its input by its heads and gives its heads' results back in that width.

    Input and output: ``[N, H, W, C]``, for a video ``[N, T, H, W, C]``.

    References:
        Liu et al., "Swin Transformer", ICCV 2021, section 3.2; "Swin Transformer V2", CVPR 2022, eq. 2 (cosine attention); "Video Swin
        Transformer", CVPR 2022, section 3.2.
    """

    known = {
        "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
        "torchvision.models.video.swin_transformer": ("ShiftedWindowAttention3d",),
    }
    joint, heads = "qkv", "num_heads"
    window_size: list[int]
    shift_size: list[int]
    qkv: nn.Linear
    proj: nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, *sizes, _ = x.shape
        dims = range(1, len(sizes) + 1)
        window, bias = self._window(sizes)
        x = F.pad(x, (0, 0, *(p for size, w in zip(reversed(sizes), reversed(window), strict=True) for p in (0, -size % w))))
        padded = list(x.shape[1:-1])
        shift = [0 if w >= size else s for w, size, s in zip(window, padded, self.shift_size, strict=True)]
        if any(shift):
            x = torch.roll(x, [-s for s in shift], list(dims))
        x = _parted(x, window).flatten(0, len(sizes)).flatten(1, -2)
        q, k, v = F.linear(x, self.qkv.weight, self._qkv_bias()).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = getattr(self, "logit_scale", None)
        if scale is not None:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * torch.clamp(scale, max=math.log(100.0)).exp()
        else:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        scores = scores + bias
        if any(shift):
            mask = _mask(x, padded, window, shift)
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x.view(n, *(size // w for size, w in zip(padded, window, strict=True)), *window, -1)
        x = x.permute(0, *(d for i in dims for d in (i, i + len(sizes))), -1).reshape(n, *padded, -1)
        if any(shift):
            x = torch.roll(x, shift, list(dims))
        for d, size in zip(dims, sizes, strict=True):
            x = x.narrow(d, 0, size)
        return x.contiguous()

    def _window(self, sizes: list[int]) -> tuple[list[int], torch.Tensor]:
        """The window, which in a video shrinks to what there is, and its bias ``[1, heads, places, places]``."""
        if len(sizes) == 2:
            return self.window_size, self.kind.get_relative_position_bias(self)
        window = [min(w, size) for w, size in zip(self.window_size, sizes, strict=True)]
        return window, self.kind.get_relative_position_bias(self, window)

    def _qkv_bias(self) -> torch.Tensor | None:
        """Keys have none where attention is by cosine."""
        bias = self.qkv.bias
        if bias is None or getattr(self, "logit_scale", None) is None:
            return bias
        q, k, v = bias.chunk(3)
        return torch.cat([q, torch.zeros_like(k), v])


def _parted(x: torch.Tensor, window: list[int]) -> torch.Tensor:
    """``[N, H, W, ...]`` in windows: ``[N, H / h, W / w, h, w, ...]``."""
    count = len(window)
    for d, w in enumerate(window):
        x = x.unflatten(1 + 2 * d, (-1, w))
    return x.permute(0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), *range(2 * count + 1, x.ndim))


def _mask(x: torch.Tensor, padded: list[int], window: list[int], shift: list[int]) -> torch.Tensor:
    """``[windows, T, T]``: what was far apart before the roll stays apart."""
    part = x.new_zeros(1)
    for size, w, s in zip(padded, window, shift, strict=True):
        place = torch.arange(size, device=x.device)
        part = part[..., None] * 3 + (place >= size - w) + (place >= size - s)
    count = len(window)
    part = _parted(part, window).flatten(0, count).flatten(1)
    return torch.where(part[:, None] == part[:, :, None], 0.0, MASKED)
