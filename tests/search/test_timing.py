from __future__ import annotations

import torch
from torch import nn

from slimline.core.plan import Fingerprint, Plan
from slimline.core.samples import Samples
from slimline.job.prepare import keep_option
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
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
        timing, artifacts = measure_timing(workshop, workshop.lower(workshop.build(plan)), places, (), plan, batch=1, threads=1, note=notes.append, most=most)
        made[most] = set(artifacts)
        assert len(notes) == (0 if most == 4 else 2)
        assert timing.of("0.weight", "dynamic", 1.0) > 0, "what was not lowered is taken to run as the float layer does"
    assert made == {4: {"float", "integer", "dynamic", "alternate/mixed"}, 1: {"float", "integer"}}
