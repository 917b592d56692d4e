from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.formats import Affine, Float, Format
from slimline.core.samples import Samples
from slimline.core.site import Op, Site
from slimline.errors import ModelError
from slimline.methods.weight_only import WeightOnly
from slimline.model import stored
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.targets.torch import Torch
from slimline.testing.target_suite import inputs_of, lowered

OPS: tuple[Op, ...] = ("conv2d", "linear")


def program(bits: int = 2) -> Program:
    return lowered(Torch, OPS, Affine(bits=bits), "integer")[0]  # type: ignore[arg-type]


def outputs(found: Program) -> list[torch.Tensor]:
    return [t.detach() for t in found.run(inputs_of(OPS, 6)).outputs]


def again(found: Program) -> Program:
    parts = {f"parts/{n}/{k}": t for n, e in found.encoded.items() for k, t in e.parts.items()}
    return stored.load(stored.save(found, inputs_of(OPS, 2)), parts)


def test_a_file_gives_the_program_back_with_its_weights_formats_and_example() -> None:
    before = program()
    after = again(before)
    assert all(torch.equal(a, b) for a, b in zip(outputs(before), outputs(after), strict=True))
    assert {n: (e.format, e.execute) for n, e in after.encoded.items()} == {n: (e.format, e.execute) for n, e in before.encoded.items()}
    assert torch.equal(after.example.kwargs["linear"], inputs_of(OPS, 2).kwargs["linear"])


def test_what_a_runtime_does_not_execute_changes_as_little_as_possible_and_no_value_does() -> None:
    before = again(program())

    def four_bits(format: Format, op: Op, execute: str) -> bool:
        return isinstance(format, Float) or (format.bits in (4, 8) and (op == "linear" or execute == "float"))  # type: ignore[attr-defined]

    after, said = stored.adapted(before, four_bits)
    assert {n: (e.format.name, e.execute) for n, e in after.encoded.items()} == {
        "layers.conv2d.weight": ("int4", "float"),
        "layers.linear.weight": ("int4", "integer"),
    }
    assert len(said) == 2 and said[1] == "layers.linear.weight (linear): int2, integer, becomes int4, integer"
    assert all(torch.equal(a, b) for a, b in zip(outputs(before), outputs(after), strict=True))


def test_a_runtime_without_integers_gets_float32() -> None:
    before = again(program(8))
    after, said = stored.adapted(before, lambda format, op, execute: isinstance(format, Float))
    assert not after.encoded and len(said) == 2 and "becomes float32" in said[0]
    for a, b in zip(outputs(before), outputs(after), strict=True):
        torch.testing.assert_close(a, b)
    artifact = Torch().lower(after, inputs_of(OPS, 2))
    for a, b in zip(Torch().run(artifact, inputs_of(OPS, 6)), outputs(before), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_weights_of_recurrent_layers_become_float32_too(op: Op) -> None:
    before = lowered(Torch, (op,), Affine(bits=8), "float")[0]
    after, said = stored.adapted(before, lambda format, op, execute: isinstance(format, Float))
    assert not after.encoded and sorted(s.partition(" ")[0] for s in said) == [f"layers.{op}.weight_hh_l0", f"layers.{op}.weight_ih_l0"]
    samples = inputs_of((op,), 6)
    for a, b in zip(after.run(samples).outputs, before.run(samples).outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_what_a_runtime_executes_stays_as_it_is() -> None:
    after, said = stored.adapted(program(), lambda format, op, execute: True)
    assert said == () and [e.format.name for e in after.encoded.values()] == ["int2", "int2"]


def test_another_file_is_a_typed_error() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        stored.load(b"nonsense", {})


def test_a_factor_that_held_nothing_but_its_weight_is_found_again_after_saving() -> None:
    """The first of two factors has no bias, so its module came back from the file as nothing: exporting such a plan ended in a defect."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 8))).eval()
    samples = Samples.of(torch.randn(2, 8))
    exported = Program.export(net, samples)
    edits = [
        e for name, use in exported.weights.items() for e in WeightOnly().rewrite(exported, Site(id=name, kind="weight", op=use.op, shape=use.shape), None)
    ]
    before = freeze(quantize(exported, edits))
    after = stored.load(stored.save(before, samples), {f"parts/{n}/{k}": t for n, e in before.encoded.items() for k, t in e.parts.items()})
    assert "1.0" not in dict(after.module.named_modules())
    expected = before.run(samples).outputs[0].detach()
    for program in (after, stored.adapted(after, lambda format, op, execute: isinstance(format, Float))[0]):
        (got,) = Torch().run(Torch().lower(program, samples), samples)
        torch.testing.assert_close(got, expected)
