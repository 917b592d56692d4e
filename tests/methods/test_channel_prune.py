"""channel_prune: ladders, counts and choices."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimline.core.plan import Decision
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.coupling import find_channel_sites
from slimline.model.structure_statistics import StructureStatistics

SCORES = ("l1", "l2", "taylor", "fisher", "second_order")


def site_of(channels: int) -> Site:
    return Site(id="c#channels", kind="channels", op="channels", shape=(channels,))


@pytest.mark.parametrize("channels", [2, 5, 10, 15, 16, 24, 32, 50, 64, 100, 512, 1280])
def test_the_ladder_has_at_most_eight_distinct_widths_that_are_kept(channels: int) -> None:
    site = site_of(channels)
    widths = [m.kept(site) for m in ChannelPrune.candidates(site)]
    assert 1 <= len(widths) <= 8
    assert widths == sorted(set(widths), reverse=True)
    assert all(0 < w < channels for w in widths)
    if channels >= 32:
        assert all(w % 8 == 0 for w in widths)


def test_other_kinds_of_sites_get_no_candidates() -> None:
    assert ChannelPrune.candidates(Site(id="w", kind="weight", op="linear", shape=(4, 4))) == ()


@pytest.mark.parametrize(
    ("channels", "keep", "multiple", "kept"),
    [(64, 0.5, 8, 32), (64, 0.01, 8, 8), (64, 0.99, 8, 56), (20, 0.5, 8, 8), (6, 0.5, 8, 3), (6, 0.01, 1, 1), (2, 0.9, 1, 1)],
)
def test_the_kept_number_is_a_multiple_below_all(channels: int, keep: float, multiple: int, kept: int) -> None:
    assert ChannelPrune(keep=keep, multiple=multiple).kept(site_of(channels)) == kept


def test_it_survives_a_plan() -> None:
    decision = Decision(site="c#channels", method=ChannelPrune(keep=0.25, importance="l1"))
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def net_with_dead_channels() -> tuple[nn.Module, Samples, StructureStatistics]:
    """Channels 1, 4 and 5 of the first layer are read with tiny weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        net[0].weight[[1, 4, 5]] *= 1e-2
        net[2].weight[:, [1, 4, 5]] *= 1e-2
    draw = torch.Generator().manual_seed(1)
    samples = Samples.of(torch.randn(32, 3, 6, 6, generator=draw), torch.randint(0, 3, (32,), generator=draw))
    return net, samples, StructureStatistics.collect(net, samples, lambda o, t: F.cross_entropy(o, t), seed=0, batch=4, moments=True)


@pytest.mark.parametrize("importance", SCORES)
def test_every_score_finds_the_channels_that_do_nothing(importance: str) -> None:
    net, samples, statistics = net_with_dead_channels()
    site = find_channel_sites(net, samples)[0][0]
    edits = ChannelPrune(keep=0.5, importance=importance, multiple=1).rewrite(net, site, statistics)
    assert {e.index for e in edits} == {(0, 2, 3)}
    assert len(edits) == len(site.members)
    with torch.no_grad():
        torch.testing.assert_close(apply_structure(net, edits)(*samples.args), net(*samples.args), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("importance", SCORES[2:])
def test_scores_from_data_need_statistics(importance: str) -> None:
    net, samples, _ = net_with_dead_channels()
    with pytest.raises(UnsupportedSite, match="statistics"):
        ChannelPrune(importance=importance).rewrite(net, find_channel_sites(net, samples)[0][0], None)
