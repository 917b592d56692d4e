"""Weights and values on their grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import UnsupportedSite
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize


class Factored(nn.Module):
    """Keras's names: ``dense`` has become two factors, and ``dense_1`` comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dense_1 = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dense_1(self.dense(x).relu())
        return out


class Twins(nn.Module):
    """Two weights that one buffer's name would stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.a_, self.a = nn.ModuleDict({"b": nn.Linear(4, 4)}), nn.ModuleDict({"_b": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.a["_b"](self.a_["b"](x))
        return out


def encodes(program: Program, *parameters: str) -> list[Encode]:
    format = Affine()
    return [Encode(p, format, format.encode(program.parameter(p).detach()), execute="float") for p in parameters]


@pytest.mark.parametrize("target", ["onnxruntime", "litert", "torch"])
def test_a_factor_and_a_layer_of_nearly_its_name_are_kept_apart(target: str) -> None:
    if target == "litert":
        pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    samples = Samples.of(torch.randn(5, 4))
    program = Program.export(Factored().eval(), samples)
    names = ("dense.0.weight", "dense.1.weight", "dense_1.weight")
    stored = freeze(quantize(program, encodes(program, *names)))
    assert set(stored.encoded) == set(names)
    torch.testing.assert_close(stored(samples), program(samples), rtol=0, atol=0.05)
    runtime = find("targets", target)()
    (got,) = runtime.run(runtime.lower(stored, samples), samples)
    torch.testing.assert_close(got, stored(samples), rtol=1e-5, atol=1e-5)


def test_weights_that_the_stored_form_cannot_keep_apart_are_refused() -> None:
    program = Program.export(Twins().eval(), Samples.of(torch.randn(2, 4)))
    edits = encodes(program, "a_.b.weight", "a._b.weight")
    assert quantize(program, edits[:1]).encoded
    with pytest.raises(UnsupportedSite, match=r"a\._b\.weight and a_\.b\.weight"):
        quantize(program, edits)
