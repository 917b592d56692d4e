"""Grids for what lies between integer layers."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.edits import Numerics, QuantizeValue
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.methods.static_int8 import StaticInt8
from slimline.model.between import completed, completing
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        out: torch.Tensor = self.head(torch.relu(x + self.b(x)).mean((2, 3)))
        return out


def made(parameters: tuple[str, ...]) -> tuple[Program, list[Numerics], list[QuantizeValue]]:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(8, 2, 4, 4))
    program = Program.export(Block().eval(), samples)
    statistics = ProgramStatistics(program, samples)
    edits: list[Numerics] = []
    for name in parameters:
        use = program.weights[name]
        edits += StaticInt8().rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)  # type: ignore[arg-type]
    return program, edits, completing(program, statistics, edits)


def test_the_sum_and_the_output_of_integer_layers_get_grids() -> None:
    program, _, found = made(("a.weight", "b.weight", "head.weight"))
    assert {f.value for f in found} == {"#relu.1", program.weights["head.weight"].output}


def test_beside_float_layers_only_what_lies_between_gets_a_grid() -> None:
    program, edits, found = made(("a.weight", "b.weight", "head.weight"))
    statistics = ProgramStatistics(program, Samples.of(torch.randn(8, 2, 4, 4)))
    assert {f.value for f in found} - {f.value for f in completing(program, statistics, edits, throughout=False)} == {program.weights["head.weight"].output}
    program, edits, found = made(("a.weight", "b.weight"))  # the sum is read, by way of the mean, by a float layer
    assert {f.value for f in found} == {"#relu.1", "#mean.0"}
    assert completing(program, statistics, edits, throughout=False) == []


def test_a_float_layer_keeps_its_surroundings_in_float() -> None:
    assert made(("a.weight",))[2] == []


def test_an_output_is_rounded_to_its_grid() -> None:
    program, edits, found = made(("a.weight", "b.weight", "head.weight"))
    stored = freeze(quantize(program, [*edits, *found]))
    grid = next(f for f in found if f.value == program.weights["head.weight"].output)
    (out,) = stored.run(Samples.of(torch.randn(5, 2, 4, 4))).outputs
    steps = out / grid.scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


def test_a_stored_program_gets_the_same_grids_later_as_it_would_have_got_at_first() -> None:
    """A plan for a runtime that takes integers and floats side by side, exported to one that does not."""
    program, edits, found = made(("a.weight", "b.weight", "head.weight"))
    samples = Samples.of(torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(3)))
    before = freeze(quantize(program, edits))
    after, values = completed(before, samples)
    assert set(values) == {f.value for f in found}
    assert completed(after, samples)[1] == () and dict(after.encoded) == dict(before.encoded)
    expected, got = before.run(samples).outputs[0].detach(), after.run(samples).outputs[0].detach()
    assert 0 < float((expected - got).abs().max()) < 0.03 * float(expected.max() - expected.min())  # two more roundings to 255 steps


def test_a_stored_program_with_a_float_layer_gets_no_grid_around_it() -> None:
    program, edits, _ = made(("a.weight",))
    before = freeze(quantize(program, edits))
    assert completed(before, Samples.of(torch.randn(8, 2, 4, 4)))[0] is before
