"""Masks that grow while a model trains: from none to what was asked for, patterns and blocks too, by magnitude or by movement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Masked
from slimline.core.samples import Samples
from slimline.errors import UsageError
from slimline.model.gradual import GradualMasks
from slimline.model.program import Program
from slimline.model.quantizers import FakeWeight, freeze, quantize
from slimline.model.recover import Distillation, distil

STEPS = 100


def lesson(format: Masked) -> tuple[nn.Module, Program, Program, Samples]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    samples = Samples.of(torch.randn(128, 16))
    program = Program.export(network, samples[:2])
    return network, program, quantize(program, [Encode(n, format, format.encode(program.parameter(n))) for n in program.weights]), samples


def masks(program: Program) -> list[torch.Tensor]:
    return [m.get_buffer("mask") for m in program.module.modules() if isinstance(m, FakeWeight)]


@pytest.mark.parametrize(
    "format", [Masked(sparsity=0.75), Masked.pattern(2, 4, Affine()), Masked(values=Affine(bits=4), sparsity=0.5, block=(4, 1))], ids=lambda f: f.name
)
@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_zeros_grow_to_their_share_and_stay(format: Masked, importance: str) -> None:
    network, program, training, samples = lesson(format)
    gradual = GradualMasks(training.module, program.parameters(), STEPS, importance=importance)  # type: ignore[arg-type]
    assert all(m.all() for m in masks(training))
    shares: list[float] = []
    before = [m.clone() for m in masks(training)]

    def watch(step: int) -> None:
        now = [m.clone() for m in masks(training)]
        assert not any((a & ~b).any() for a, b in zip(now, before, strict=True)), "a weight came back"
        before[:] = now
        shares.append(1 - float(torch.cat([m.flatten() for m in now]).float().mean()))

    how = Distillation(steps=STEPS, batch=32, learning_rate=5e-3, weight_decay=0.0)
    distil(training.module, training.module.parameters(), network, samples, how, gradual=gradual, on_step=watch)
    assert shares == sorted(shares) and shares[8] == 0.0 and len(set(shares)) >= (2 if format.m else 5)
    assert shares[59] == pytest.approx(format.sparsity, abs=0.01) == shares[-1]
    stored = freeze(training)
    for name, encode in stored.encoded.items():
        mask = encode.parts["mask"]
        assert torch.equal(mask, format.masked_by(mask.float())), "the mask is one of the format's"
        assert not encode.format.decode(encode.parts)[~mask].any(), name


def test_it_starts_from_the_weights_before_any_mask() -> None:
    _, program, training, samples = lesson(Masked(sparsity=0.9))
    with torch.no_grad():
        wanted, masked = program(samples), training(samples)
        GradualMasks(training.module, program.parameters(), STEPS)
        torch.testing.assert_close(training(samples), wanted)
    assert not torch.allclose(masked, wanted, atol=0.01)


def test_movement_removes_what_training_moves_towards_zero() -> None:
    _, program, training, _ = lesson(Masked(sparsity=0.5))
    gradual = GradualMasks(training.module, program.parameters(), 10, importance="movement", ramp=1.0)
    for _ in range(10):
        for _, _, weight in gradual.layers:
            weight.grad = weight.detach().clone()  # towards zero, the more the larger
        gradual.observe()
        gradual.step()
    for layer, _, weight in gradual.layers:
        kept = layer.get_buffer("mask")
        assert float(weight.detach().abs()[kept].max()) <= float(weight.detach().abs()[~kept].min())


def test_training_that_is_stopped_leaves_whole_masks() -> None:
    network, program, training, samples = lesson(Masked(sparsity=0.75))
    gradual = GradualMasks(training.module, program.parameters(), STEPS)
    left = iter([False] * 15 + [True])
    how = Distillation(steps=STEPS, batch=32)
    assert distil(training.module, training.module.parameters(), network, samples, how, gradual=gradual, stop=lambda: next(left)) == 15
    assert [float(m.float().mean()) for m in masks(training)] == pytest.approx([0.25, 0.25], abs=0.01)


def test_no_steps_are_no_schedule() -> None:
    _, program, training, _ = lesson(Masked(sparsity=0.5))
    with pytest.raises(UsageError, match="no schedule"):
        GradualMasks(training.module, program.parameters(), 0)
