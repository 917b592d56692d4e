"""Closed-form repair after pruning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.edits import Keep, Replace
from slimline.core.samples import Samples
from slimline.model.apply import apply_structure
from slimline.model.coupling import find_channel_sites
from slimline.model.reconstruct import recalibrate_batch_norm, reconstruct


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding="valid", bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, dilation=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def images(count: int) -> Samples:
    return Samples.of(torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(2)))


def pruned_half(net: nn.Module, samples: Samples) -> tuple[nn.Module, list[Keep]]:
    sites, _ = find_channel_sites(net, samples[:2])
    edits = [Keep(m, tuple(range(0, s.shape[0], 2))) for s in sites for m in s.members]
    return apply_structure(net, edits), edits


def test_reconstruction_brings_the_outputs_nearer_to_the_original() -> None:
    net = small_cnn()
    calibration, fresh = images(64), Samples.of(torch.randn(64, 3, 14, 14, generator=torch.Generator().manual_seed(3)))
    pruned, edits = pruned_half(net, calibration)
    repaired = reconstruct(net, pruned, edits, calibration)
    with torch.no_grad():
        expected, before, after = net(*fresh.args), pruned(*fresh.args), repaired(*fresh.args)
    assert (after - expected).square().mean() < 0.6 * (before - expected).square().mean()


def test_reconstruction_changes_neither_model() -> None:
    net = small_cnn()
    pruned, edits = pruned_half(net, images(8))
    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (net, pruned)]
    reconstruct(net, pruned, edits, images(8))
    for model, before in zip((net, pruned), kept, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_redundant_channel_is_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].weight[2] = net[0].weight[0] - 2 * net[0].weight[1]
        net[0].bias[2] = 0.7
    samples = Samples.of(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    site = find_channel_sites(net, samples)[0][0]
    edits = [Keep(m, (0, 1)) for m in site.members]
    repaired = reconstruct(net, apply_structure(net, edits), edits, samples, ridge=1e-9)
    torch.testing.assert_close(repaired(*samples.args), net(*samples.args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [True, False])
def test_the_solution_is_that_of_least_squares(linear: bool) -> None:
    torch.manual_seed(0)
    first, second = (nn.Linear(4, 6), nn.Linear(6, 3, bias=False)) if linear else (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1, bias=False))
    net = nn.Sequential(first, nn.ReLU(), second).eval()
    x = torch.randn(50, 4, *([] if linear else [2, 2]), generator=torch.Generator().manual_seed(1))
    site = find_channel_sites(net, Samples.of(x))[0][0]
    edits = [Keep(m, (0, 1, 2)) for m in site.members]
    repaired = reconstruct(net, apply_structure(net, edits), edits, Samples.of(x), ridge=1e-12)
    with torch.no_grad():
        hidden = net[:2](x).movedim(1, -1).reshape(-1, 6)[:, :3].double()
        outputs = net(x).movedim(1, -1).reshape(-1, 3).double()
    expected = torch.linalg.lstsq(hidden, outputs).solution.T
    torch.testing.assert_close(repaired[2].weight.flatten(1).double(), expected, rtol=1e-3, atol=1e-4)


def test_after_a_dropped_block_the_layers_behind_it_are_fitted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)).eval()
    samples = Samples.of(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)))
    edits = [Replace("2", nn.Identity())]
    repaired = reconstruct(net, apply_structure(net, edits), edits, samples, ridge=1e-9)
    torch.testing.assert_close(repaired(*samples.args), net(*samples.args), rtol=1e-3, atol=1e-4)
    assert torch.equal(repaired[0].weight, net[0].weight) and not torch.equal(repaired[3].weight, net[3].weight), "what gives what it gave is not fitted"


class Twice(nn.Module):
    """A layer that is called twice, and an embedding whose weight the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.shared, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        return self.head(x + self.shared(self.shared(x).relu()))


def test_weights_with_several_users_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    net = Twice().eval()
    samples = Samples.of(torch.randint(0, 11, (64, 4), generator=torch.Generator().manual_seed(1)))
    (site,) = find_channel_sites(net, samples[:2])[0]
    edits = [Keep(m, (0, 2, 3, 5)) for m in site.members]
    pruned = apply_structure(net, edits)
    repaired = reconstruct(net, pruned, edits, samples)
    assert repaired.head.weight is repaired.embedding.weight
    assert all(torch.equal(v, pruned.state_dict()[k]) for k, v in repaired.state_dict().items())


def test_batch_norms_take_the_statistics_of_the_samples() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    x = 3 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    new = recalibrate_batch_norm(net, Samples.of(x), batch=64)
    torch.testing.assert_close(new[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(new[0].running_var, x.var((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert new[0].momentum == net[0].momentum and not new[0].training and not new[1].training
    assert torch.equal(net[0].running_mean, torch.zeros(3))


def test_without_batch_norms_nothing_changes() -> None:
    net = nn.Linear(3, 2).eval()
    new = recalibrate_batch_norm(net, Samples.of(torch.randn(4, 3)))
    assert torch.equal(new.weight, net.weight) and new is not net
