"""block_drop: the identity takes a block's place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.plan import Decision
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.block_drop import BlockDrop
from slimline.model.apply import apply_structure

SITE = Site(id="1#block", kind="block", op="block", shape=(1, 3))


def test_the_block_is_gone_and_its_input_passes() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    dropped = apply_structure(net, BlockDrop().rewrite(net, SITE, None))
    x = torch.randn(2, 3)
    torch.testing.assert_close(dropped(x), net[2](net[0](x)))


def test_it_is_offered_at_blocks_only() -> None:
    assert BlockDrop.candidates(SITE) == (BlockDrop(),)
    channels = Site(id="1#channels", kind="channels", op="channels", shape=(3,))
    assert BlockDrop.candidates(channels) == ()
    with pytest.raises(UnsupportedSite, match="only blocks"):
        BlockDrop().rewrite(nn.Identity(), channels, None)


def test_it_survives_a_plan() -> None:
    decision = Decision(site="1#block", method=BlockDrop())
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
