"""projection: components of the inputs that the first layers read, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.projection import Projection
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.reconstruct import reconstruct
from slimline.model.structure_statistics import StructureStatistics


class Two(nn.Module):
    """Two layers that read one input, after ``first``."""

    def __init__(self, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first if first is not None else nn.Identity()
        self.a, self.b, self.head = nn.Linear(16, 24), nn.Linear(16, 8), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        out: torch.Tensor = self.head(torch.cat([torch.tanh(self.a(x)), torch.relu(self.b(x))], 1))
        return out


def table(units: torch.Tensor | None = None) -> torch.Tensor:
    """Sixteen features of four causes, off zero."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=draw) @ torch.randn(4, 16, generator=draw) + 0.5 * torch.ones(4).sum()
    return x if units is None else x * units


def model(first: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Two(first).eval()


def error(net: nn.Module, x: torch.Tensor, dimensions: int, *, repaired: bool = False) -> float:
    (site,), _ = find_input_sites(net, Samples.of(x))
    edits = Projection(dimensions=dimensions).rewrite(net, site, StructureStatistics.collect(net, Samples.of(x), None, seed=0))
    new = apply_structure(net, edits)
    if repaired:
        new = reconstruct(net, new, edits, Samples.of(x), ridge=1e-6)
    assert tuple(new.get_parameter("a.weight").shape) == (24, dimensions) and tuple(new.get_parameter("b.weight").shape) == (8, dimensions)
    with torch.no_grad():
        before = net(x)
        return float((new(x) - before).norm() / (before - before.mean(0)).norm())


def test_as_many_components_as_causes_and_one_for_the_mean_lose_nothing() -> None:
    assert error(model(), table(), 5) < 1e-3
    assert error(model(), table(), 3) > 0.05
    assert error(model(), table(), 3, repaired=True) <= error(model(), table(), 3)


def test_units_of_features_do_not_matter() -> None:
    units = torch.logspace(-2, 2, 16)
    other = model()
    with torch.no_grad():
        for name in ("a", "b"):
            other.get_parameter(f"{name}.weight").div_(units)
    assert error(other, table(units), 3) == pytest.approx(error(model(), table(), 3), rel=1e-2)


def test_a_layer_that_reads_features_at_every_step_of_a_sequence_is_narrowed() -> None:
    torch.manual_seed(0)
    net, x = nn.LSTM(12, 8, batch_first=True), torch.randn(64, 5, 3) @ torch.randn(3, 12)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.lstm(x)[0][:, -1]
            return out

    whole = Last().eval()
    (site,), _ = find_input_sites(whole, Samples.of(x))
    edits = Projection(dimensions=3).rewrite(whole, site, StructureStatistics.collect(whole, Samples.of(x), None, seed=0))
    new = apply_structure(whole, edits)
    with torch.no_grad():
        torch.testing.assert_close(new(x), whole(x), atol=1e-4, rtol=1e-3)
    assert new.get_submodule("lstm").input_size == 3


@pytest.mark.parametrize(("first", "reason"), [(nn.ReLU(), "not linear"), (nn.BatchNorm1d(16), "one by one")])
def test_what_reads_features_one_by_one_is_refused(first: nn.Module, reason: str) -> None:
    net = model(first)
    (site,), _ = find_input_sites(net, Samples.of(table()))
    with pytest.raises(UnsupportedSite, match=reason):
        Projection(dimensions=4).rewrite(net, site, StructureStatistics.collect(net, Samples.of(table()), None, seed=0))


def test_without_statistics_or_with_too_many_dimensions_it_is_refused() -> None:
    (site,), _ = find_input_sites(model(), Samples.of(table()))
    with pytest.raises(UnsupportedSite, match="need calibration samples"):
        Projection(dimensions=4).rewrite(model(), site, None)
    with pytest.raises(UnsupportedSite, match="only 16 features"):
        Projection(dimensions=16).rewrite(model(), site, None)
    assert Projection.candidates(Site(id="#input.0", kind="input", op="input", shape=(1, 3, 32, 32), resizable=True)) == ()
