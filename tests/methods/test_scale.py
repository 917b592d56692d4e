"""scale: everything narrower or shallower at once, costed as it is built, and never beside what prunes the same channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.plan import Fingerprint
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.block_drop import BlockDrop
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.scale import Scale, dropped, kept
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Option, Space, Timing, layers_of
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime
from slimline.testing.method_suite import Residual


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Residual(16), Residual(16)]
        return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture(scope="module")
def made() -> tuple[Space, Workshop]:
    """The space of scale, channel_prune and block_drop."""
    model, samples = network(), Samples.of(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    sites, _ = find_sites(model, samples)
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime())
    sensitivity = Sensitivity(workshop, samples)
    places = []
    for site in (s for s in sites if s.kind in ("model", "block", "channels")):
        offered = [m for method in (Scale, BlockDrop, ChannelPrune) if site.kind in method.kinds for m in method.candidates(site)]
        place, refused = sensitivity.place(site, offered, lambda s: Option("keep", channels=s.features or None))
        assert not refused
        places.append(place)
    weights = workshop.program.weights
    timing = Timing({"float": dict.fromkeys(weights, 1.0)}, {}, 0.0)
    return Space(Fingerprint(architecture="a", weights="w"), tuple(places), layers_of(weights, places), timing, 0, 0), workshop


def test_widths_and_depths_are_offered(made: tuple[Space, Workshop]) -> None:
    space, _ = made
    assert space.places[0].site.id == "#model"
    assert [o.label for o in space.places[0].options] == ["keep", "scale(width=0.75)", "scale(width=0.5)", "scale(depth=0.5)", "scale(width=0.75, depth=0.5)"]


def test_estimates_are_those_of_the_built_model(made: tuple[Space, Workshop]) -> None:
    space, workshop = made
    for taken in range(len(space.places[0].options)):
        choice = (taken, *space.nothing[1:])
        program = workshop.build(space.plan(choice)).program
        assert space.costs(choice)["macs"] == pytest.approx(program.macs())
        assert space.costs(choice)["size"] == sum(4 * t.numel() for t in program.parameters().values())
        assert space.choice(space.plan(choice)) == choice


def test_it_does_not_go_with_what_prunes_the_same(made: tuple[Space, Workshop]) -> None:
    space, _ = made
    for index in range(1, len(space.places)):
        both = (1, *(1 if i == index else 0 for i in range(1, len(space.places))))
        assert not space.legal(both)
        assert space.legal((0, *both[1:])) and space.legal((1, *space.nothing[1:]))


def test_the_least_is_below_every_choice(made: tuple[Space, Workshop]) -> None:
    space, _ = made
    for taken in range(5):
        assert space.least("macs") <= space.costs((taken, *space.nothing[1:]))["macs"]


def test_widths_are_multiples_that_kernels_work_in() -> None:
    assert [kept(Site(id="c#channels", kind="channels", op="channels", shape=(n,)), 0.5) for n in (64, 40, 20, 9, 1)] == [32, 16, 8, 4, 1]


def test_of_unlike_blocks_each_kind_keeps_its_share() -> None:
    blocks = [Site(id=f"stage{s}.{i}#block", kind="block", op="block", shape=(1, s)) for s in (1, 2) for i in range(3)]
    assert [b.id for b in dropped(blocks, 0.5)] == ["stage1.2#block", "stage2.2#block"]
    assert dropped(blocks, 1.0) == []


def test_without_statistics_and_anywhere_but_at_the_model_it_is_refused() -> None:
    model = network()
    whole = find_sites(model, Samples.of(torch.randn(2, 3, 8, 8)))[0][0]
    with pytest.raises(UnsupportedSite, match="needs calibration"):
        Scale(width=0.5).rewrite(model, whole, None)
    with pytest.raises(UnsupportedSite, match="only the whole model"):
        Scale(width=0.5).rewrite(model, whole.parts[0], None)
    with pytest.raises(UnsupportedSite, match="nothing of this model"):
        Scale().rewrite(model, whole, None)
