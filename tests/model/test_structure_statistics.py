"""Gradients and moments gathered for channel scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimline.core.samples import Samples
from slimline.model.coupling import find_channel_sites
from slimline.model.structure_statistics import StructureStatistics, readers_of


def net_and_samples() -> tuple[nn.Module, Samples]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 9, 3)).eval()
    draw = torch.Generator().manual_seed(1)
    return net, Samples.of(torch.randn(6, 2, 5, 5, generator=draw), torch.randint(0, 3, (6,), generator=draw))


def loss(outputs: Any, targets: Any) -> torch.Tensor:
    return F.cross_entropy(outputs, targets)


def test_mask_gradients_are_the_derivatives_by_a_mask_on_the_channels() -> None:
    net, samples = net_and_samples()
    site = find_channel_sites(net, samples)[0][0]
    statistics = StructureStatistics.collect(net, samples, loss, seed=0, batch=3)
    got = statistics.mask_gradients(readers_of(net, site))
    for b, part in enumerate(samples.batches(3)):
        mask = torch.ones(4, requires_grad=True)
        loss(net[2:](net[:2](part.args[0]) * mask[:, None, None]), part.targets).backward()
        torch.testing.assert_close(got[b], mask.grad, rtol=1e-4, atol=1e-6)


def test_moments_are_the_mean_outer_products_of_the_patches() -> None:
    net, samples = net_and_samples()
    statistics = StructureStatistics.collect(net, samples, loss, seed=0, moments=True)
    with torch.no_grad():
        patches = F.unfold(net[:2](samples.args[0]), 3).transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(statistics.moments["2.weight"], patches.T @ patches / len(patches), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("given", [None, lambda outputs, targets: None])
def test_without_a_loss_the_outputs_own_distribution_serves(given: Any) -> None:
    net, samples = net_and_samples()
    first, second = (StructureStatistics.collect(net, samples, given, seed=3) for _ in range(2))
    assert first.products["0.weight", 0].abs().sum() > 0
    assert torch.equal(first.products["0.weight", 0], second.products["0.weight", 0])


def test_the_model_is_untouched() -> None:
    net, samples = net_and_samples()
    StructureStatistics.collect(net, samples, loss, seed=0, moments=True)
    assert all(p.grad is None for p in net.parameters())


def test_no_samples_is_an_error() -> None:
    net, samples = net_and_samples()
    with pytest.raises(ValueError, match="no samples"):
        StructureStatistics.collect(net, samples[:0], loss, seed=0)
