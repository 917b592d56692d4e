"""Weights and values on their grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.errors import UnsupportedSite
from slimline.model.program import Program
from slimline.model.quantizers import quantize


class Twins(nn.Module):
    """Two weights that one buffer's name would stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Linear(4, 4)})
        self.a_b = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.a_b(self.a["b"](x))
        return out


def test_weights_that_the_stored_form_cannot_keep_apart_are_refused() -> None:
    program = Program.export(Twins().eval(), Samples.of(torch.randn(2, 4)))
    format = Affine()
    edits = [Encode(p, format, format.encode(program.parameter(p).detach()), execute="float") for p in ("a.b.weight", "a_b.weight")]
    assert quantize(program, edits[:1]).encoded
    with pytest.raises(UnsupportedSite, match=r"a_b\.weight and a\.b\.weight"):
        quantize(program, edits)
