"""The training form of masked and shared weights: masks stay, entries and scales learn, and what was trained is what is stored."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Codebook, Float, Format, Masked, Product
from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.quantizers import FakeWeight, freeze, quantize

FORMATS: tuple[Format, ...] = (
    Masked(values=Affine(bits=4), sparsity=0.75),
    Masked(values=Float(), sparsity=0.75),
    Masked.pattern(2, 4, Affine()),
    Codebook(k=4),
    Codebook(k=8, values=Affine()),
    Product(k=16, d=2, values=Affine()),
    Masked(values=Affine(bits=4), sparsity=0.75, block=(4, 1)),
    Masked(values=Codebook(k=8, values=Affine(), zero=True), sparsity=0.5),
)


def training(format: Format) -> tuple[Program, Samples, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    samples = Samples.of(torch.randn(64, 16))
    with torch.no_grad():
        wanted = network(samples.args[0])
    program = Program.export(network, samples[:2])
    return quantize(program, [Encode(n, format, format.encode(program.parameter(n))) for n in program.weights]), samples, wanted


def train(program: Program, samples: Samples, wanted: torch.Tensor) -> list[float]:
    optimizer = torch.optim.Adam(program.module.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = (program(samples) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.name)
def test_training_wins_back_what_the_format_lost_and_the_stored_form_is_what_was_trained(format: Format) -> None:
    program, samples, wanted = training(format)
    layers = [m for m in program.module.modules() if isinstance(m, FakeWeight)]
    before = [{name: t.clone() for name, t in layer.tables.items()} for layer in layers]
    losses = train(program, samples, wanted)
    assert min(losses[-5:]) < 0.6 * losses[0]
    for layer, tables in zip(layers, before, strict=True):
        for name, table in layer.tables.items():
            if name == "mask":
                assert torch.equal(table, tables[name])
            else:
                assert not torch.equal(table, tables[name]), f"{name} learned nothing"
                assert torch.equal(table.sign(), tables[name].sign()), "a zero stays zero"
    stored = freeze(program)
    torch.testing.assert_close(stored(samples), program(samples), atol=1e-5, rtol=1e-4)
    for encode in stored.encoded.values():
        if "mask" in encode.parts:
            assert not encode.format.decode(encode.parts)[~encode.parts["mask"]].any()


def test_a_state_dict_brings_masks_and_entries_back() -> None:
    format = FORMATS[-1]
    program, samples, wanted = training(format)
    fresh = training(format)[0]
    train(program, samples, wanted)
    assert not torch.equal(fresh(samples), program(samples))
    fresh.module.load_state_dict(copy.deepcopy(program.module.state_dict()))
    torch.testing.assert_close(fresh(samples), program(samples))
