from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.sites import find_sites
from slimline.numerics.divergence import divergence
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Option
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime


class Encoder(nn.Module):
    """Sentence vectors: the mean of embeddings, through a layer, of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(50, 16), nn.Linear(16, 24)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.out(self.words(ids).mean(1)), dim=1)


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, Samples]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval(), Samples.of(torch.randint(0, 50, (64, 6)))


def test_options_of_an_encoder_lose_the_relative_squared_error_of_its_vectors(parts: tuple[nn.Module, Samples]) -> None:
    model, samples = parts
    sites, _ = find_sites(model, samples[:2])
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime(), classes=False)
    site = next(s for s in sites if s.id == "words.weight")
    options = [o for o in Sensitivity(workshop, samples).numerics(site, [WeightOnly(bits=4), WeightOnly()]) if isinstance(o, Option)]
    for option, bits in zip(options, (4, 8), strict=True):
        changed = workshop.build(workshop.plan(option.decisions)).training
        with torch.no_grad():
            reference, outputs = model(*samples.args), changed(samples)
        assert option.loss == pytest.approx(float(((outputs - reference) ** 2).sum() / (reference**2).sum()), rel=1e-3), bits
        assert option.loss > 3 * float(divergence(outputs, reference, classes=True)), "a softmax of small values hides what changed"
    assert options[0].loss > 50 * options[1].loss


def test_a_dynamic_layer_loses_what_the_rounding_of_its_input_loses(parts: tuple[nn.Module, Samples]) -> None:
    model, samples = parts
    sites, _ = find_sites(model, samples[:2])
    workshop = Workshop(model, samples[:2], samples, sites, OnnxRuntime(), classes=False)
    site = next(s for s in sites if s.id == "out.weight")
    (dynamic,) = (o for o in Sensitivity(workshop, samples).numerics(site, [DynamicInt8(reduce_range=True)]) if isinstance(o, Option))
    artifact = workshop.lower(workshop.build(workshop.plan(dynamic.decisions)))
    with torch.no_grad():
        reference = model(*samples.args)
    measured = float(divergence(workshop.target.run(artifact, samples)[0], reference, classes=False))
    assert dynamic.loss == pytest.approx(measured, rel=0.05)
