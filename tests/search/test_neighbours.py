"""Blocks that follow each other lose more together than alone, and the solver counts it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from slimline.core.budget import Budget
from slimline.core.plan import Decision, Fingerprint
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.methods.block_drop import BlockDrop
from slimline.model.program import Program
from slimline.model.sites import find_sites
from slimline.numerics.divergence import divergence
from slimline.search.prices import least_loss
from slimline.search.sensitivity import Sensitivity, neighbours
from slimline.search.space import Corrections, Neighbours, Option, Place, Space, Timing, layers_of
from slimline.search.strategies.allocate import solve
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime
from slimline.testing.method_suite import Residual

LOSSES = (0.010, 0.011, 0.012, 0.013)  # of the blocks alone
BESIDE = 0.05  # what any two neighbours lose beyond that


class Tower(nn.Module):
    """Two blocks that follow each other, a convolution, two more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.early_1, self.early_2 = Residual(8), Residual(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.late_1, self.late_2 = Residual(8), Residual(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.early_2(self.early_1(self.stem(x))))
        out: torch.Tensor = self.head(self.late_2(self.late_1(x)).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, samples = Tower().eval(), Samples.of(torch.randn(128, 3, 8, 8))
    sites, _ = find_sites(net, samples[:2])
    return Workshop(net, samples[:2], samples, sites, OnnxRuntime())


@pytest.fixture(scope="module")
def space(workshop: Workshop) -> Space:
    """Four blocks that can be dropped, nothing else; every layer takes a millisecond."""
    program: Program = workshop.program
    blocks = [s for s in workshop.sites if s.kind == "block"]
    places = [
        Place(s, (Option("keep"), Option("drop", (Decision(site=s.id, method=BlockDrop()),), loss, dropped=True)))
        for s, loss in zip(blocks, LOSSES, strict=True)
    ]
    timing = Timing({"float": dict.fromkeys(program.weights, 1.0)}, {}, 0.0)
    found = Space(Fingerprint(architecture="a", weights="w"), tuple(places), layers_of(program.weights, places), timing, 0, 0)
    return replace(found, neighbours=(Neighbours(0, 1, BESIDE), Neighbours(2, 3, BESIDE)))


def test_neighbours_are_blocks_of_which_one_reads_what_the_other_gives(workshop: Workshop) -> None:
    blocks: list[Site] = [s for s in workshop.sites if s.kind == "block"]
    names = [(blocks[i].module, blocks[j].module) for i, j in neighbours(workshop.program, blocks)]
    assert names == [("early_1", "early_2"), ("late_1", "late_2")]


@pytest.mark.parametrize("repaired", [True, False])
def test_what_two_lose_is_measured_on_a_model_without_both(workshop: Workshop, repaired: bool) -> None:
    assert workshop.unseen is not None and workshop.calibration is not None
    first, second = (s for s in workshop.sites if s.kind == "block" and s.module.startswith("early"))
    decisions = tuple(Decision(site=s.id, method=BlockDrop()) for s in (first, second))
    samples = workshop.unseen if repaired else workshop.calibration
    lost = Sensitivity(workshop, workshop.calibration, repaired=repaired).together(first, second, decisions)
    with torch.no_grad():
        if repaired:
            module: nn.Module = workshop.structure(workshop.plan(decisions))
        else:
            module = Tower()
            module.load_state_dict(workshop.model.state_dict())
            module.early_1 = module.early_2 = nn.Identity()  # type: ignore[assignment]
        expected = divergence(module.eval()(*samples.args), workshop.model(*samples.args), classes=True)
    assert lost == pytest.approx(float(expected), rel=1e-3)


def test_a_choice_loses_what_its_neighbours_lose_together(space: Space) -> None:
    assert space.loss((1, 0, 1, 0)) == pytest.approx(LOSSES[0] + LOSSES[2])
    assert space.loss((1, 1, 1, 0)) == pytest.approx(sum(LOSSES[:3]) + BESIDE)
    assert space.loss((1, 1, 1, 1), Corrections(losses={"block": 2.0})) == pytest.approx(2 * (sum(LOSSES) + 2 * BESIDE))


@pytest.mark.parametrize("level", [0.005, 0.0105, 0.02, 0.025, 0.07, 0.1, 0.2])
def test_the_solver_finds_the_best_of_all_choices(space: Space, level: float) -> None:
    """Two blocks that are not neighbours, where sums alone would take the two that lose least."""
    every = list(itertools.product((0, 1), repeat=4))
    best = min(space.costs(c)["latency"] for c in every if space.loss(c) <= level)
    found = solve(space, Budget(), level, Corrections())
    assert found is not None and len(found) == 4 and space.loss(found) <= 1.001 * level
    assert space.costs(found)["latency"] == best


@pytest.mark.parametrize("layers", [11, 9, 7, 5, 3])
def test_the_least_loss_within_a_limit_counts_them_too(space: Space, layers: int) -> None:
    every = list(itertools.product((0, 1), repeat=4))
    least = min(space.loss(c) for c in every if space.costs(c)["latency"] <= layers)
    found = least_loss(space, {"latency": layers}, Corrections(), space.nothing)
    assert found is not None and space.loss(found) == pytest.approx(least)


def test_trials_correct_neighbours_with_their_blocks(space: Space) -> None:
    trials = [(choice, {}, 2 * space.loss(choice)) for choice in ((1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 1))]
    assert space.fitted(trials).losses["block"] == pytest.approx(2, rel=1e-3)
