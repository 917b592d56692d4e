"""What is hard about well-known architectures, in small: 30 % of all channels go, and the artefact gives what the pruned module gives.

``benchmarks/architectures.py`` does the same with the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimline.core.edits import keep_channels
from slimline.core.samples import Samples
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.coupling import find_channel_sites
from slimline.model.program import Program
from slimline.model.quantizers import freeze
from slimline.model.traced import tensors_of
from slimline.targets.onnxruntime import OnnxRuntime

CLOSE = 1e-3  # of the largest output, as in the benchmark


def conv(inputs: int, outputs: int, kernel: int = 3, **more: int) -> nn.Sequential:
    """Convolution, norm, relu."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass by, then all are shuffled; with ``stride`` both halves are new."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.stride = outputs // 2, stride
        own = inputs if stride > 1 else half
        self.by = (
            nn.Sequential(nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs), nn.BatchNorm2d(inputs), conv(inputs, half, 1))
            if stride > 1
            else nn.Sequential()
        )
        self.through = nn.Sequential(conv(own, half, 1), nn.Conv2d(half, half, 3, stride, 1, groups=half), nn.BatchNorm2d(half), conv(half, half, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        x = torch.cat((self.by(a), self.through(b)), 1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def shufflenet() -> nn.Module:
    units = (ShuffleUnit(6, 12, 2), ShuffleUnit(12, 12, 1), ShuffleUnit(12, 12, 1))
    return nn.Sequential(conv(3, 6), *units, conv(12, 20, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 4))


def looked_up(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    size = math.isqrt(places.numel())
    return table[places].view(size, size, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


class ShiftedWindowAttention(nn.Module):
    """Swin's attention as torchvision has it: padded, rolled, masked windows, a table of relative positions; all widths follow from that of the input."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift_size = heads, [window, window], [shift, shift]
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("places", (apart[0] * (2 * window - 1) + apart[1]).flatten())
        self.logit_scale: nn.Parameter | None = None
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) / 4)

    def get_relative_position_bias(self) -> torch.Tensor:
        return looked_up(self.relative_position_bias_table, self.places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, h, w, c = x.shape
        size, heads = self.window_size[0], self.num_heads
        relative = self.get_relative_position_bias()
        x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
        tall, wide = x.shape[1] // size, x.shape[2] // size
        shift = self.shift_size[0] if size < x.shape[1] else 0
        if shift:
            x = torch.roll(x, (-shift, -shift), (1, 2))
        x = x.view(n, tall, size, wide, size, c).permute(0, 1, 3, 2, 4, 5).reshape(n * tall * wide, size * size, c)
        bias = self.qkv.bias
        if self.logit_scale is not None:
            bias = bias.clone()
            length = bias.numel() // 3
            bias[length : 2 * length].zero_()
        qkv = F.linear(x, self.qkv.weight, bias).reshape(x.size(0), x.size(1), 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.logit_scale is not None:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.logit_scale.clamp(max=4.60517).exp()
        else:
            scores = (q * (c // heads) ** -0.5).matmul(k.transpose(-2, -1))
        scores = scores + relative
        if shift:
            part = x.new_zeros((tall * size, wide * size))
            cuts = ((0, -size), (-size, -shift), (-shift, None))
            for i, a in enumerate(cuts):
                for j, b in enumerate(cuts):
                    part[a[0] : a[1], b[0] : b[1]] = 3 * i + j
            part = part.view(tall, size, wide, size).permute(0, 2, 1, 3).reshape(tall * wide, size * size)
            mask = part.unsqueeze(1) - part.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
            scores = scores.view(n, tall * wide, heads, size * size, size * size) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, heads, size * size, size * size)
        x = self.proj(scores.softmax(-1).matmul(v).transpose(1, 2).reshape(x.size(0), x.size(1), c))
        x = x.view(n, tall, wide, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(n, tall * size, wide * size, c)
        if shift:
            x = torch.roll(x, (shift, shift), (1, 2))
        return x[:, :h, :w, :].contiguous()


class ShiftedWindowAttentionV2(ShiftedWindowAttention):
    """The second version's: by cosine, a bias that is zeroed in part, relative positions through a perceptron."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__(width, heads, window, shift)
        del self.relative_position_bias_table
        self.logit_scale = nn.Parameter(torch.rand(heads, 1, 1) * 3)
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 10), nn.ReLU(inplace=True), nn.Linear(10, heads, bias=False))
        self.register_buffer("coordinates", torch.randn(1, 2 * window - 1, 2 * window - 1, 2))

    def get_relative_position_bias(self) -> torch.Tensor:
        return 16 * torch.sigmoid(looked_up(self.cpb_mlp(self.coordinates).view(-1, self.num_heads), self.places))


class ShiftedWindowAttention3d(nn.Module):
    """The video Swin's: windows shrink to what there is."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift_size = heads, [2, window, window], [shift // 2, shift, shift]
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        places = torch.stack(torch.meshgrid(*map(torch.arange, self.window_size), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + torch.tensor(self.window_size)[:, None, None] - 1
        wide = 2 * window - 1
        self.register_buffer("places", (apart[0] * wide + apart[1]) * wide + apart[2])
        self.relative_position_bias_table = nn.Parameter(torch.randn(3 * wide**2, heads) / 4)

    def get_relative_position_bias(self, window: list[int]) -> torch.Tensor:
        volume = math.prod(window)
        return looked_up(self.relative_position_bias_table, self.places[:volume, :volume].flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, *sizes, c = x.shape
        heads, size = self.num_heads, [min(w, s) for w, s in zip(self.window_size, sizes, strict=True)]
        shift = [0 if w == s else by for w, s, by in zip(size, sizes, self.shift_size, strict=True)]
        relative = self.get_relative_position_bias(size)
        x = F.pad(x, (0, 0, 0, -sizes[2] % size[2], 0, -sizes[1] % size[1], 0, -sizes[0] % size[0]))
        t, h, w = (s // by for s, by in zip(x.shape[1:-1], size, strict=True))
        if sum(shift):
            x = torch.roll(x, [-s for s in shift], (1, 2, 3))
        x = x.view(n, t, size[0], h, size[1], w, size[2], c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n * t * h * w, math.prod(size), c)
        q, k, v = self.qkv(x).reshape(x.size(0), x.size(1), 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        scores = (q * (c // heads) ** -0.5).matmul(k.transpose(-2, -1)) + relative
        if sum(shift):
            part = x.new_zeros((t * size[0], h * size[1], w * size[2]))
            cuts = [((0, -by), (-by, -s), (-s, None)) for by, s in zip(size, shift, strict=True)]
            for number, (a, b, d) in enumerate((a, b, d) for a in cuts[0] for b in cuts[1] for d in cuts[2]):
                part[a[0] : a[1], b[0] : b[1], d[0] : d[1]] = number
            part = part.view(t, size[0], h, size[1], w, size[2]).permute(0, 2, 4, 1, 3, 5).reshape(t * h * w, -1)
            mask = part.unsqueeze(1) - part.unsqueeze(2)
            mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
            scores = (scores.view(n, t * h * w, heads, x.size(1), x.size(1)) + mask[:, None]).view(-1, heads, x.size(1), x.size(1))
        x = self.proj(scores.softmax(-1).matmul(v).transpose(1, 2).reshape(x.size(0), x.size(1), c))
        x = x.view(n, t, h, w, *size, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, t * size[0], h * size[1], w * size[2], c)
        if sum(shift):
            x = torch.roll(x, shift, (1, 2, 3))
        return x[:, : sizes[0], : sizes[1], : sizes[2], :].contiguous()


class RelativePositionalMultiHeadAttention(nn.Module):
    """MaxViT's: the heads' results go back in the width of the input."""

    def __init__(self, width: int, head: int, places: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.max_seq_len, self.scale_factor = width // head, head, places, width**-0.5
        self.to_qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("places", torch.arange(places**2) % (places + 1))
        self.table = nn.Parameter(torch.randn(places + 1, self.n_heads))

    def get_relative_positional_bias(self) -> torch.Tensor:
        return looked_up(self.table, self.places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, g, p, d = x.shape
        q, k, v = (t.reshape(n, g, p, self.n_heads, self.head_dim).permute(0, 1, 3, 2, 4) for t in torch.chunk(self.to_qkv(x), 3, dim=-1))
        scores = torch.einsum("B G H I D, B G H J D -> B G H I J", q, k * self.scale_factor)
        scores = F.softmax(scores + self.get_relative_positional_bias(), dim=-1)
        out = torch.einsum("B G H I J, B G H J D -> B G H I D", scores, v)
        return self.merge(out.permute(0, 1, 3, 2, 4).reshape(n, g, p, d))


for kind in (ShiftedWindowAttention, ShiftedWindowAttentionV2):
    kind.__module__ = "torchvision.models.swin_transformer"  # by which they are known
ShiftedWindowAttention3d.__module__ = "torchvision.models.video.swin_transformer"
RelativePositionalMultiHeadAttention.__module__ = "torchvision.models.maxvit"


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, shift: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2, self.cosine = nn.LayerNorm(width), nn.LayerNorm(width), kind is ShiftedWindowAttentionV2
        self.attention = kind(width, heads, 4, shift)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cosine:
            x = x + self.norm1(self.attention(x))
            return x + self.norm2(self.mlp(x))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaxViT(nn.Module):
    """Attention in windows of neighbours, then among places far apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.norm2, self.head = conv(3, 12), nn.LayerNorm(12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.near, self.far = (RelativePositionalMultiHeadAttention(12, 4, 4) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for attention, size, swap in ((self.near, 2, False), (self.far, 4, True)):
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, size * size, c)
            x = torch.swapaxes(x, -2, -3) if swap else x
            x = x + attention(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
            x = torch.swapaxes(x, -2, -3) if swap else x
            n, _, _, c = x.shape
            x = x.reshape(n, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class Merge(nn.Module):
    """Four neighbours become one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.reduction(self.norm(torch.cat([x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.blocks = nn.Sequential(SwinBlock(8, 2, 2, ShiftedWindowAttentionV2), Merge(8), SwinBlock(16, 4, 0, ShiftedWindowAttentionV2))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.norm0(self.stem(x).permute(0, 2, 3, 1))))
        return self.head(x.permute(0, 3, 1, 2).mean((2, 3)))


class Flow(nn.Module):
    """RAFT: both images in one batch, divided again; correlations of all places with all, looked up; a convolutional GRU; upsampling by learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1))
        self.context = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 14, 3, 2, 1))
        self.hidden = 8
        self.near, self.motion = nn.Conv2d(9, 10, 1), nn.Conv2d(10 + 2, 8, 3, padding=1)
        self.z, self.r, self.q = (nn.Conv2d(8 + 6 + 8 + 2, 8, 3, padding=1) for _ in range(3))
        self.delta = nn.Sequential(nn.Conv2d(8, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 2, 3, padding=1))
        self.mask = nn.Sequential(nn.Conv2d(8, 11, 3, padding=1), nn.ReLU(), nn.Conv2d(11, 9 * 16, 1))

    def look(self, levels: list[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
        n, _, h, w = places.shape
        d = torch.linspace(-1, 1, 3)
        around = torch.stack(torch.meshgrid(d, d, indexing="ij"), -1).view(1, 3, 3, 2)
        centre, found = places.permute(0, 2, 3, 1).reshape(n * h * w, 1, 1, 2), []
        for level in levels:
            x, y = (centre + around).split([1, 1], -1)
            grid = torch.cat([2 * x / (level.shape[-1] - 1) - 1, 2 * y / (level.shape[-2] - 1) - 1], -1)
            found.append(F.grid_sample(level, grid, align_corners=True).view(n, h, w, -1))
            centre = centre / 2
        return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()

    def forward(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        a, b = torch.chunk(self.features(torch.cat([one, two])), 2, 0)
        n, c, h, w = a.shape
        volume = torch.matmul(a.view(n, c, h * w).transpose(1, 2), b.view(n, c, h * w)).view(n, h, w, 1, h, w) / torch.sqrt(torch.tensor(c))
        volume = volume.reshape(n * h * w, 1, h, w)
        levels = [F.avg_pool2d(volume, 2, 2)]
        both = self.context(one)
        hidden, context = torch.split(both, [self.hidden, both.shape[1] - self.hidden], 1)
        hidden, context = torch.tanh(hidden), context.relu()
        start = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")[::-1]).float()[None].repeat(n, 1, 1, 1)
        places = start
        for _ in range(1):
            flow = places - start
            motion = torch.cat([self.motion(torch.cat([self.near(self.look(levels, places)).relu(), flow], 1)).relu(), flow], 1)
            x = torch.cat([context, motion], 1)
            both = torch.cat([hidden, x], 1)
            z, r = torch.sigmoid(self.z(both)), torch.sigmoid(self.r(both))
            hidden = (1 - z) * hidden + z * torch.tanh(self.q(torch.cat([r * hidden, x], 1)))
            places = places + self.delta(hidden)
        mask = torch.softmax((0.25 * self.mask(hidden)).view(n, 1, 9, 4, 4, h, w), 2)
        up = F.unfold(4 * (places - start), 3, padding=1).view(n, 2, 9, 1, 1, h, w)
        return (mask * up).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(n, 2, 4 * h, 4 * w)


class Pooled(nn.Module):
    """MViT: queries, keys and values without their class token are pooled by depthwise convolutions over space; relative positions along it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, width // heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.pools = nn.ModuleList(nn.Conv2d(self.each, self.each, 3, stride, 1, groups=self.each, bias=False) for stride in (1, 2, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(self.each) for _ in range(3))
        self.table = nn.Parameter(torch.randn(4, 2, self.each))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        side = int((t - 1) ** 0.5)
        parts = self.qkv(x).reshape(n, t, 3, self.heads, self.each).transpose(1, 3).unbind(2)
        found = []
        for value, pool, norm in zip(parts, self.pools, self.norms, strict=True):
            first, rest = torch.tensor_split(value, indices=(1,), dim=2)
            rest = pool(rest.reshape(n * self.heads, side, side, self.each).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
            found.append(norm(torch.cat([first, rest.reshape(n, self.heads, -1, self.each)], 2)))
        q, k, v = found
        scores = torch.matmul(self.each**-0.5 * q, k.transpose(2, 3))
        placed = q[:, :, 1:].reshape(n, self.heads, side, side, self.each)
        along = torch.matmul(placed.permute(2, 0, 1, 3, 4).reshape(side, -1, self.each), self.table.transpose(1, 2)).transpose(0, 1)
        along = along.view(n, self.heads, side, side, 2).permute(0, 1, 3, 2, 4)
        apart = torch.einsum("byhwc,hkc->byhwk", placed, self.table)[:, :, :, :, :, None] + along[:, :, :, :, None, :]
        scores[:, :, 1:, 1:] += apart.reshape(n, self.heads, side * side, -1)
        mixed = scores.softmax(-1).matmul(v) + q
        return self.project(mixed.transpose(1, 2).reshape(n, -1, self.heads * self.each))


class MViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.attention = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), Pooled(12, 3)
        self.token, self.position = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(17, 12))
        self.norm2, self.mlp, self.head = nn.LayerNorm(12), nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12)), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.size(0), 1, -1), x), 1) + self.position
        x = x + self.attention(self.norm(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Detector(nn.Module):
    """A pyramid of features, the same heads on every level as RetinaNet's and FCOS's, and boxes through fully connected layers as Faster R-CNN's."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList((conv(3, 6, stride=2), conv(6, 10, stride=2), conv(10, 14, stride=2)))
        self.inner = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (6, 10, 14))
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.classes, self.boxes, self.scale = nn.Conv2d(8, 3 * 5, 3, padding=1), nn.Conv2d(8, 3 * 4, 3, padding=1), nn.Parameter(torch.ones(1) * 2)
        self.fc6, self.fc7, self.score = nn.Linear(8 * 9, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        top = self.inner[2](found[2])
        levels = [self.layers[2](top)]
        for i in (1, 0):
            own = self.inner[i](found[i])
            top = own + F.interpolate(top, size=own.shape[-2:], mode="nearest")
            levels.insert(0, self.layers[i](top))
        levels.append(F.max_pool2d(levels[-1], 1, 2, 0))
        scores, places = [], []
        for level in levels:
            shared = self.tower(level)
            for head, out, size in ((self.classes, scores, 5), (self.boxes, places, 4)):
                n, _, h, w = (y := head(shared)).shape
                out.append(y.view(n, -1, size, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, size))
        box = F.adaptive_avg_pool2d(levels[0], 3).flatten(start_dim=1)
        return torch.cat(scores, 1), torch.cat(places, 1) * self.scale, self.score(self.fc7(self.fc6(box).relu()).relu())


class SingleShot(nn.Module):
    """SSD: the first map divided by its norm with a scale for each channel; smaller and smaller maps, a head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8) * 20)
        self.base, self.extra = conv(3, 8, stride=2), nn.ModuleList((conv(8, 10, stride=2), conv(10, 6, stride=2)))
        self.heads = nn.ModuleList(nn.Conv2d(c, 4 * 3, 3, padding=1) for c in (8, 10, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.base(x)
        maps = [self.scale.view(1, -1, 1, 1) * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        found = []
        for value, head in zip(maps, self.heads, strict=True):
            n, _, h, w = (y := head(value)).shape
            found.append(y.view(n, -1, 3, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 3))
        return torch.cat(found, 1)


class Atrous(nn.Module):
    """DeepLab v3: dilated branches and the mean of all, resized and joined; LR-ASPP: one branch weighs the other; the mask in the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv(3, 6, stride=2), conv(6, 12, stride=2)
        self.branches = nn.ModuleList((conv(12, 7, 1), nn.Sequential(nn.Conv2d(12, 7, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(7), nn.ReLU())))
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 7, 1, bias=False), nn.ReLU())
        self.project, self.weigh = conv(21, 10, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 10, 1), nn.Sigmoid())
        self.of_low, self.of_high = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        size = x.shape[-2:]
        low = self.low(x)
        high = self.high(low)
        found = [b(high) for b in self.branches] + [F.interpolate(self.whole(high), size=high.shape[-2:], mode="bilinear", align_corners=False)]
        y = self.project(torch.cat(found, 1)) * self.weigh(high)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": F.interpolate(self.of_low(low) + self.of_high(y), size=size, mode="bilinear", align_corners=False)}


class Video(nn.Module):
    """S3D and R(2+1)D: convolutions over space and over time apart, branches joined."""

    def __init__(self) -> None:
        super().__init__()

        def apart(inputs: int, outputs: int) -> nn.Sequential:
            space = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)
            return nn.Sequential(space, nn.BatchNorm3d(outputs), nn.ReLU(), time, nn.BatchNorm3d(outputs), nn.ReLU())

        self.stem = nn.Sequential(apart(3, 8), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.branches = nn.ModuleList((nn.Conv3d(8, 5, 1), apart(8, 6), nn.Sequential(nn.MaxPool3d(3, 1, 1), nn.Conv3d(8, 4, 1))))
        self.pool, self.head = nn.AvgPool3d((2, 7, 7), stride=1), nn.Conv3d(15, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(torch.cat([b(x) for b in self.branches], 1).relu())
        return self.head(x).mean((2, 3, 4))


class Grouped(nn.Module):
    """RegNet: grouped bottlenecks with squeeze and excitation, and a residual that is projected."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 12, 1), conv(12, 12, stride=2, groups=3)
        self.squeeze, self.excite, self.c = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1), nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12))
        self.by, self.head = nn.Sequential(nn.Conv2d(8, 12, 1, 2), nn.BatchNorm2d(12)), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        y = y * self.excite(self.squeeze(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()
        return self.head((self.by(x) + self.c(y)).relu().mean((2, 3)))


class DenseBlock(nn.Module):
    """DenseNet: every layer reads all before it; then half as many."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
            )
            for i in range(3)
        )
        self.down = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2))
        self.norm, self.head = nn.BatchNorm2d(10), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(F.adaptive_avg_pool2d(self.norm(self.down(torch.cat(found, 1))).relu(), (1, 1)).flatten(1))


class ViT(nn.Module):
    """A class token, positions, PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.token, self.position = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 17, 12))
        self.norm1, self.attention = nn.LayerNorm(12), nn.MultiheadAttention(12, 4, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(12), nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Dropout(0.1), nn.Linear(20, 12))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return self.head(self.norm(x + self.mlp(self.norm2(x)))[:, 0])


class Mixed(nn.Module):
    """MobileViT: convolutions, then attention over the places of each patch, and back to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local, self.into, self.out = conv(3, 8), conv(8, 8), nn.Conv2d(8, 12, 1, bias=False), conv(12, 8, 1)
        self.norm, self.qkv, self.proj, self.fuse, self.head = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12), conv(16, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.into(self.local(x))
        n, c, h, w = y.shape
        t = y.reshape(n * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(n, c, h * w // 4, 4).transpose(1, 3).reshape(n * 4, h * w // 4, c)
        q, k, v = self.qkv(self.norm(t)).reshape(n * 4, h * w // 4, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        t = t + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n * 4, h * w // 4, -1))
        t = t.contiguous().view(n, 4, h * w // 4, -1).transpose(1, 3).reshape(n * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.fuse(torch.cat((x, self.out(t)), 1)).mean((2, 3)))


IMAGE = (2, 3, 16, 16)
HARD: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "shufflenet_v2": (shufflenet, (IMAGE,)),
    "swin_v2": (Swin, ((2, 3, 18, 18),)),
    "maxvit": (MaxViT, ((2, 3, 8, 8),)),
    "raft": (Flow, ((2, 3, 32, 32), (2, 3, 32, 32))),
    "mvit": (MViT, (IMAGE,)),
    "two-stage detector": (Detector, ((2, 3, 32, 32),)),
    "ssd": (SingleShot, (IMAGE,)),
    "deeplab": (Atrous, (IMAGE,)),
    "video": (Video, ((2, 3, 4, 16, 16),)),
    "regnet": (Grouped, (IMAGE,)),
    "densenet": (DenseBlock, (IMAGE,)),
    "vit": (ViT, (IMAGE,)),
    "mobilevit": (Mixed, (IMAGE,)),
}
LEAST = dict.fromkeys(HARD, 0.75) | {"raft": 0.85, "mvit": 0.8}  # of the parameters may be left: see the text of each


@pytest.mark.parametrize("name", HARD)
def test_channels_go_and_the_artefact_gives_what_the_module_gives(name: str) -> None:
    make, shapes = HARD[name]
    torch.manual_seed(0)
    model = make().eval()
    samples = Samples.of(tuple(torch.randn(s) for s in shapes) if len(shapes) > 1 else torch.randn(shapes[0]))
    sites, refusals = find_channel_sites(model, samples)
    edits = [e for s in sites for e in ChannelPrune(keep=0.7, importance="l2", multiple=1).rewrite(model, s, None)]
    pruned = apply_structure(model, edits)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
    assert after < LEAST[name] * before, (round(after / before, 3), [s.id for s in sites], refusals)
    target = OnnxRuntime()
    got = target.run(target.lower(freeze(Program.export(pruned, samples)), samples), samples)
    with torch.no_grad():
        expected = tensors_of(pruned(*samples.args))
    assert [g.shape for g in got] == [e.shape for e in expected]
    for a, b in zip(got, expected, strict=True):
        assert float((a - b).abs().max()) < CLOSE * float(b.abs().max())


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("kind", "places"), [(ShiftedWindowAttention, (10, 6)), (ShiftedWindowAttentionV2, (10, 6)), (ShiftedWindowAttention3d, (3, 6, 4))])
def test_windows_that_have_lost_heads_and_width_give_what_the_others_give(kind: type[nn.Module], places: tuple[int, ...], shift: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), SwinBlock(12, 3, shift, kind), nn.Linear(12, 2)).eval()
    x = torch.randn(2, *places, 3)
    sites, refusals = find_channel_sites(model, Samples.of(x))
    heads = next((s for s in sites if ("1.attention.qkv.weight", 0) in {(m.parameter, m.dim) for m in s.members}), None)
    width = next((s for s in sites if s.id == "0#channels"), None)
    assert heads is not None and width is not None, refusals
    assert heads.shape == (3,)
    pruned = apply_structure(model, keep_channels(heads, (0, 2)))
    assert pruned[1].attention.qkv.weight.shape == (24, 12) and type(model[1].attention).__name__.startswith("Shifted")
    with torch.no_grad():
        model[1].attention.proj.weight[:, 4:8] = 0
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-5, atol=1e-5)
        narrow = apply_structure(pruned, keep_channels(width, (0, 2, 3, 7, 11)))
    assert narrow[1].attention.head_dim == 4 and narrow(x).shape == (2, *places, 2)
