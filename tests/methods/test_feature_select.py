"""feature_select: what others tell goes first, constants cost nothing, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.feature_select import FeatureSelect
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.reconstruct import reconstruct
from slimline.model.structure_statistics import StructureStatistics


def table() -> torch.Tensor:
    """Eight features: 0 to 3 on their own, 4 twice 0, 5 the sum of 1 and 2 and a constant, 6 constant, 7 noise."""
    own = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(256, 1, generator=torch.Generator().manual_seed(1))
    return torch.cat([own, 2 * own[:, :1], own[:, 1:2] + own[:, 2:3] + 3, torch.full((256, 1), 5.0), noise], 1)


def model() -> nn.Module:
    """Reads everything but the noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    with torch.no_grad():
        net[0].weight[:, 7] = 0  # type: ignore[index, operator]
    return net.eval()


def chosen(count: int) -> tuple[tuple[int, ...], float]:
    """What is kept, and the relative error of the repaired model."""
    net, samples = model(), Samples.of(table())
    (site,), _ = find_input_sites(net, samples)
    edits = FeatureSelect(count=count).rewrite(net, site, StructureStatistics.collect(net, samples, None, seed=0))
    new = reconstruct(net, apply_structure(net, edits), edits, samples, ridge=1e-6)
    with torch.no_grad():
        before, after = net(samples.args[0]), new(samples.args[0])
    return edits[0].index, float((after - before).norm() / (before - before.mean(0)).norm())


def test_four_of_eight_features_lose_nothing_where_the_rest_follows_from_them() -> None:
    kept, error = chosen(4)
    assert 3 in kept and not {6, 7} & set(kept)
    assert error < 1e-3


def test_what_nothing_else_tells_is_missed() -> None:
    assert chosen(3)[1] > 0.05


def test_every_offer_is_smaller_than_all_and_none_is_made_where_features_must_stay() -> None:
    (site,), _ = find_input_sites(model(), Samples.of(table()))
    assert [m.count for m in FeatureSelect.candidates(site) if isinstance(m, FeatureSelect)] == [6, 4, 2]
    assert FeatureSelect.candidates(Site(id="#input.0", kind="input", op="input", shape=(1, 3, 32, 32), resizable=True)) == ()


def test_without_statistics_or_with_too_many_features_it_is_refused() -> None:
    net = model()
    (site,), _ = find_input_sites(net, Samples.of(table()))
    with pytest.raises(UnsupportedSite, match="needs calibration samples"):
        FeatureSelect(count=4).rewrite(net, site, None)
    with pytest.raises(UnsupportedSite, match="only 8 features"):
        FeatureSelect(count=8).rewrite(net, site, StructureStatistics.collect(net, Samples.of(table()), None, seed=0))
