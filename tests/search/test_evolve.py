"""Sampling the same space as the allocator: every draw becomes a plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.budget import Budget
from slimline.core.plan import Fingerprint, Method
from slimline.core.samples import Samples
from slimline.core.trial import Latency, Measurement, Trial
from slimline.job.option_database import keep_option
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.low_rank import LowRank
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Space, Timing, layers_of
from slimline.search.strategies.evolve import Evolve
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime

pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'slimline[evolve]')")


@pytest.fixture(scope="module")
def space() -> Space:
    """Eight layers whose factors need whole shapes, and the channels between them: hardly any random choice keeps to that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(part for _ in range(7) for part in (nn.Linear(32, 32), nn.ReLU())), nn.Linear(32, 32)).eval()
        samples = Samples.of(torch.randn(64, 32))
    sites = tuple(s for s in find_sites(model, samples[:2])[0] if s.kind in ("weight", "channels"))
    sensitivity = Sensitivity(Workshop(model, samples[:2], samples, sites, OnnxRuntime()), samples[:16])
    offered: dict[str, list[Method]] = {"weight": [StaticInt8(), LowRank(rank=4), LowRank(rank=8)], "channels": [ChannelPrune(keep=k) for k in (0.75, 0.5)]}
    places = tuple(sensitivity.place(s, offered[s.kind], keep_option)[0] for s in sites)
    weights = Program.export(model, samples[:2]).weights
    return Space(Fingerprint(architecture="a", weights="w"), places, layers_of(weights, places), Timing({"float": dict.fromkeys(weights, 1.0)}, {}, 0.0), 0, 0)


def test_every_proposal_is_a_legal_plan_that_was_not_tried(space: Space) -> None:
    assert any(o.whole for p in space.places for o in p.options)
    strategy, trials = Evolve(12), list[Trial]()
    while (plan := strategy.propose(space, Budget(), trials)) is not None:
        choice = space.choice(plan)
        assert choice is not None and space.legal(choice)
        costs = space.costs(choice)
        size = int(costs["size"])
        measured = Measurement(
            size_bytes=size,
            download_bytes=size,
            download_codec="none",
            memory_bytes=size,
            parameters=1,
            macs=int(costs["macs"]),
            latency_ms=Latency(median=costs["latency"], p95=costs["latency"], runs=1),
            quality=0.9,
        )
        trials.append(Trial(plan=plan, origin="evolve", status="met", measured_loss=space.loss(choice), measurement=measured))
    assert len({t.plan.digest for t in trials}) == len(trials) == 12
