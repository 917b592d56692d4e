"""Tables of positions: the file holds the rows that the model reads."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.targets.onnxruntime import OnnxRuntime

TARGET = OnnxRuntime()
ROWS, READ, WIDTH = 512, 8, 64


class Positions(nn.Module):
    """Learned positions, of which eight are read; ``twice``: and the table is a weight of the last product, too."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("places", torch.arange(ROWS)[None])
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.mix(x + self.table(self.places[:, : x.shape[1]]))
        return y @ self.table.weight.T if self.twice else y


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_only_the_rows_that_are_read_are_stored(bits: Literal[32, 8, 4]) -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(4, READ, WIDTH))
    program = Program.export(Positions().eval(), samples[:2])
    stored = program
    if bits < 32:
        format = Affine(bits=bits)
        stored = quantize(program, [Encode("table.weight", format, format.encode(program.parameter("table.weight")), "float")])
    frozen = freeze(stored)
    artifact = TARGET.lower(frozen, samples)
    assert artifact.size_bytes < 4 * WIDTH * WIDTH + ROWS * WIDTH * bits / 8 / 4 + 3_000
    torch.testing.assert_close(TARGET.run(artifact, samples)[0], frozen(samples), rtol=1e-4, atol=1e-5)


def test_a_table_that_something_else_reads_stays_whole() -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(4, READ, WIDTH))
    program = Program.export(Positions(twice=True).eval(), samples[:2])
    artifact = TARGET.lower(freeze(program), samples)
    torch.testing.assert_close(TARGET.run(artifact, samples)[0], program(samples), rtol=1e-4, atol=1e-5)
