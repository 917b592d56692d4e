from __future__ import annotations

import torch
from torch import nn

from slimline.core.plan import Fingerprint, Plan
from slimline.core.samples import Samples
from slimline.job.option_database import keep_option
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Timing
from slimline.search.timing import measure_timing
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime


def test_no_more_models_are_lowered_than_there_is_time_for() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, samples = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval(), Samples.of(torch.randn(64, 16))
    sites = tuple(s for s in find_sites(model, samples[:2])[0] if s.kind == "weight")
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime())
    sensitivity = Sensitivity(workshop, samples)
    places = [sensitivity.place(s, [StaticInt8(reduce_range=True), DynamicInt8(reduce_range=True)], keep_option)[0] for s in sites]
    made = {}
    for most in (4, 1):
        notes: list[str] = []
        plan = Plan(model=Fingerprint(architecture="", weights=""))
        timing, artifacts = measure_timing(workshop, workshop.lower(workshop.build(plan)), places, plan, batch=1, threads=1, note=notes.append, most=most)
        made[most] = set(artifacts)
        assert len(notes) == (0 if most == 4 else 2)
        assert timing.of("0.weight", "dynamic") > 0, "what was not lowered is taken to run as the float layer does"
    assert made == {4: {"float", "integer", "dynamic", "alternate/mixed"}, 1: {"float", "integer"}}


def test_each_side_of_a_layer_is_timed_alone() -> None:
    """Pruned in two groups, a layer loses outputs in one model and inputs in the other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)).eval()
        samples = Samples.of(torch.randn(64, 16))
    sites = tuple(s for s in find_sites(model, samples[:2])[0] if s.kind in ("weight", "channels"))
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime())
    sensitivity = Sensitivity(workshop, samples)
    offered = {s.id: [StaticInt8(reduce_range=True)] if s.kind == "weight" else [ChannelPrune(keep=k) for k in (0.75, 0.5, 0.25)] for s in sites}
    places = [sensitivity.place(s, offered[s.id], keep_option)[0] for s in sites]
    plan = Plan(model=Fingerprint(architecture="", weights=""))
    timing, artifacts = measure_timing(workshop, workshop.lower(workshop.build(plan)), places, plan, batch=1, threads=1, note=lambda _: None, most=9)
    assert len(artifacts) == 9
    few = measure_timing(workshop, artifacts["float"], places, plan, batch=1, threads=1, note=lambda _: None, most=9, widths=False)
    assert set(few[1]) == {"float", "integer", "alternate/mixed"} and not few[0].narrow, "where nobody asks for milliseconds"
    ladders = timing.narrow["integer"]
    shares = {name: tuple([share for share, _ in side] for side in sides) for name, sides in ladders.items()}
    assert shares == {"0.weight": ([0.75, 0.5, 0.25], []), "2.weight": ([0.75, 0.5, 0.25],) * 2, "4.weight": ([], [0.75, 0.5, 0.25])}
    assert all(factor > 0 for sides in ladders.values() for side in sides for _, factor in side)


def test_a_ladder_is_followed_from_rung_to_rung() -> None:
    """12 of 16 channels can take longer than all of them, and 8 as long as 4."""
    timing = Timing({"integer": {"w": 2.0}, "float": {"w": 4.0}}, {"integer": {"w": (((0.75, 1.5), (0.5, 1.0)), ((0.5, 0.5),))}}, 0.0)
    assert timing.of("w", "integer") == 2.0
    assert timing.of("w", "integer", 0.75) == 3.0
    assert timing.of("w", "integer", 0.625) == 2.5
    assert timing.of("w", "integer", 0.5, 0.5) == 1.0
    assert timing.of("w", "integer", 1.0, 0.75) == 1.5
    assert 0.3 * 2.0 < timing.of("w", "integer", 0.25) < 2.0
    assert timing.of("w", "float", 0.5) < 4.0, "where nothing narrower was measured, time goes with the work"
