"""Steps of values that training learns, and scales that stay powers of two."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode, QuantizeValue
from slimline.core.formats import Affine, Codebook
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat
from slimline.methods.codebook import SharedWeights
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.program import Program
from slimline.model.quantizers import FakeValue, FakeWeight, freeze, learn_steps, quantize
from slimline.model.recover import Distillation, distil
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.affine import weight_scale


def lesson() -> tuple[nn.Module, Program, Samples]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    samples = Samples.of(torch.randn(256, 32))
    return network, Program.export(network, samples[:2]), samples


def edits(program: Program, method: SharedWeights | StaticInt8, samples: Samples) -> list[Encode | QuantizeValue]:
    statistics = ProgramStatistics(program, samples)
    wished = [e for n, u in program.weights.items() for e in method.rewrite(program, Site(id=n, kind="weight", op=u.op, shape=u.shape), statistics)]
    return [e for e in wished if isinstance(e, Encode | QuantizeValue)]


def coarse(scale: float = 0.5) -> FakeValue:
    return FakeValue(QuantizeValue("v", bits=8, signed=False, scale=scale, zero_point=4))


def test_until_it_learns_a_step_is_exactly_the_edits() -> None:
    layer = coarse()
    assert layer.scale == layer.settled.scale == 0.5
    x = torch.randn(50) * 20
    learn_steps(layer, True)
    learning = layer(x)
    learn_steps(layer, False)
    torch.testing.assert_close(learning, layer(x))


@pytest.mark.parametrize("scale", [0.02, 8.0])
def test_the_gradient_leads_to_a_step_with_less_error(scale: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(4000) * 8 + 10
    layer = coarse(scale)
    learn_steps(layer, True)
    optimizer = torch.optim.Adam([layer.log], 0.05)
    errors = []
    for _ in range(80):
        error = (layer(x) - x).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0]


def test_a_grid_that_ends_at_six_grows_no_wider() -> None:
    layer = FakeValue(QuantizeValue("v", bits=8, signed=False, scale=6 / 255, zero_point=0))
    with torch.no_grad():
        layer.log.fill_(0.5)
    assert layer.scale == 6 / 255
    with torch.no_grad():
        layer.log.fill_(-0.5)
    assert layer.scale == pytest.approx(6 / 255 * math.exp(-0.5))


@pytest.mark.parametrize("learn", [True, False])
def test_steps_that_were_learned_are_stored(learn: bool) -> None:
    network, program, samples = lesson()
    training = quantize(program, edits(program, StaticInt8(bits=4, rounding="second_order"), samples))
    values = [m for m in training.module.modules() if isinstance(m, FakeValue)]
    how = Distillation(steps=30, batch=64, weight_decay=0.0, learn_steps=learn)
    distil(training.module, training.module.parameters(), network, samples, how)
    assert [v.scale != v.edit.scale for v in values] == [learn] * len(values)
    torch.testing.assert_close(freeze(training)(samples), training(samples), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_powers_of_two_stay_so_from_the_encoding_through_training_to_the_file(bits: int, rounding: str) -> None:
    network, program, samples = lesson()
    wished = edits(program, StaticInt8.model_validate({"bits": bits, "rounding": rounding, "power_of_two": True}), samples)
    assert all(math.log2(e.scale).is_integer() for e in wished if isinstance(e, QuantizeValue))
    training = quantize(program, wished)
    distil(training.module, training.module.parameters(), network, samples, Distillation(steps=20, batch=64, weight_decay=0.0))
    for encode in freeze(training).encoded.values():
        assert torch.equal(encode.parts["scale"].log2(), encode.parts["scale"].log2().round())


def test_clipping_is_tried_in_halves() -> None:
    weight = torch.tensor([[1.0, 0.12, -0.11, 0.1, 0.13, -0.12, 0.11, -0.1] * 8])
    weight[0, 1:] *= 0.9
    free, snapped = (weight_scale(weight, Affine(bits=4, power_of_two=p), "mse") for p in (False, True))
    assert float(snapped.log2()) == round(float(snapped.log2()))
    assert 0.5 <= float(snapped / free) <= 2


def test_a_rate_and_powers_of_two_are_refused() -> None:
    for method in (StaticInt8, WeightOnly):
        with pytest.raises(UnsupportedFormat, match="powers of two cannot follow"):
            method(rate=2.0, power_of_two=True)


def test_common_entries_are_the_same_in_every_layer_before_and_after_training() -> None:
    network, program, samples = lesson()
    method = SharedWeights(k=8, common=True)
    wished = [e for e in edits(program, method, samples) if not (isinstance(e, Encode) and e.parameter == "4.weight")]
    encodes = [e for e in wished if isinstance(e, Encode)]
    assert len(encodes) == 2 and torch.equal(encodes[0].parts["codebook"], encodes[1].parts["codebook"])
    own, shared = Codebook(k=8, values=Affine()), Codebook(k=8, values=Affine(), common=True)
    assert own.estimate((64, 64)) - shared.estimate((64, 64)) == 8
    training = quantize(program, wished)
    layers = [m for m in training.module.modules() if isinstance(m, FakeWeight)]
    assert layers[0].logs["codebook"] is layers[1].logs["codebook"]
    distil(training.module, training.module.parameters(), network, samples, Distillation(steps=60, batch=64, learning_rate=0.02, weight_decay=0.0))
    assert not torch.equal(layers[0].logs["codebook"], torch.zeros(8))
    first, second = (e.parts["codebook"] for e in freeze(training).encoded.values())
    assert torch.equal(first, second)
    with pytest.raises(UnsupportedFormat, match="common float entries"):
        SharedWeights(values="float32", common=True)
