"""Blocks that the identity can replace."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.edits import Replace
from slimline.core.samples import Samples
from slimline.model.apply import apply_structure
from slimline.model.blocks import Skip, find_block_sites


class Block(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: torch.Tensor, rate: float = 0.0) -> torch.Tensor:
        return torch.relu(self.drop(self.conv(x)) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList([Block(4, 4), Block(4, 8), Block(8, 8)])
        self.plain = nn.Conv2d(8, 8, 1)
        self.twice = Block(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, rate=0.1 * i)
        return self.twice(self.twice(self.plain(x)))


IMAGE = Samples.of(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))


def test_only_blocks_with_an_identity_shortcut_called_once_are_found() -> None:
    sites, refusals = find_block_sites(Net().eval(), IMAGE)
    assert not refusals
    assert [s.id for s in sites] == ["blocks.0#block", "blocks.2#block"]
    assert sites[1].shape == (1, 8, 6, 6)
    assert {m.parameter for m in sites[0].members} == {"blocks.0.conv.weight", "blocks.0.conv.bias"}


def test_a_block_called_with_more_than_a_tensor_can_be_replaced() -> None:
    net = Net().eval()
    dropped = apply_structure(net, [Replace("blocks.2", Skip())])
    assert dropped(*IMAGE.args).shape == net(*IMAGE.args).shape
    assert sum(p.numel() for p in dropped.parameters()) < sum(p.numel() for p in net.parameters())


def test_of_equal_modules_the_outermost_is_the_site() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Block(4, 4)), nn.Sequential(Block(4, 4), Block(4, 4))).eval()
    assert [s.id for s in find_block_sites(net, IMAGE)[0]] == ["1#block", "2.0#block", "2#block", "2.1#block"]


def test_transformer_layers_are_blocks_whether_they_normalise_first_or_last() -> None:
    def layer(first: bool) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first)

    sites, _ = find_block_sites(nn.Sequential(layer(True), layer(False)).eval(), Samples.of(torch.randn(2, 5, 8)))
    assert [s.id for s in sites] == ["0#block", "1#block"]


class Counting(nn.Module):
    """Reads an attribute of its block, as code that was not written for this does."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) * self.block.conv.out_channels


def test_a_block_that_the_models_code_needs_is_refused_with_the_reason() -> None:
    sites, (refusal,) = find_block_sites(Counting().eval(), IMAGE)
    assert not sites and refusal.where == "block#block"
    assert refusal.reason == "the model's code needs the block: 'Skip' object has no attribute 'conv'"


def test_finding_changes_nothing() -> None:
    net = Net().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    find_block_sites(net, IMAGE)
    assert isinstance(net.blocks[0], Block) and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
