"""dynamic_int8: linear and LSTM layers, never convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.gru = nn.Conv1d(4, 8, 3), nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lstm(self.conv(x).transpose(1, 2))[0]
        out: torch.Tensor = self.second(self.first(self.gru(x)[0]).relu())
        return out


@pytest.fixture(scope="module")
def program() -> Program:
    return Program.export(Net().eval(), Samples.of(torch.randn(2, 4, 9)))


def rewrite(program: Any, name: str) -> tuple[Any, ...]:
    use = program.weights[name]
    return DynamicInt8().rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), None)


def test_lstm_weights_are_encoded_per_gate_and_channel(program: Program) -> None:
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        (edit,) = rewrite(program, name)
        assert isinstance(edit, Encode) and edit.execute == "dynamic"
        assert edit.format == Affine(bits=8, axis=0) and edit.parts["scale"].shape == (32,)


def test_a_linear_layer_needs_no_data() -> None:
    program = Program.export(nn.Sequential(nn.Linear(6, 4)).eval(), Samples.of(torch.randn(2, 6)))
    (edit,) = rewrite(program, "0.weight")
    weight = program.parameter("0.weight").detach()
    assert float((edit.format.decode(edit.parts) - weight).abs().max()) <= float(weight.abs().max()) / 254 * 1.01


def test_four_bits_are_rounded_by_what_the_layer_reads() -> None:
    net = nn.Sequential(nn.Linear(32, 24)).eval()
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(0)) @ torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    program = Program.export(net, Samples.of(x[:2]))
    statistics, site = ProgramStatistics(program, Samples.of(x)), Site(id="0.weight", kind="weight", op="linear", shape=(24, 32))
    assert [m.label for m in DynamicInt8.candidates(site)] == [
        "dynamic_int8",
        "dynamic_int8(rounding=second_order)",
        "dynamic_int8(bits=4, rounding=second_order)",
    ]
    weight, errors = program.parameter("0.weight").detach(), []
    for method in (DynamicInt8(bits=4), DynamicInt8(bits=4, rounding="second_order")):
        (edit,) = method.rewrite(program, site, statistics)
        assert isinstance(edit, Encode) and edit.execute == "dynamic" and edit.format == Affine(bits=4, axis=0)
        errors.append(float(((edit.format.decode(edit.parts) - weight) @ x.T).square().mean()))
    assert errors[1] < 0.7 * errors[0]
    with pytest.raises(UnsupportedSite, match="no second moments"):
        method.rewrite(program, site, None)


def test_an_lstm_takes_eight_bits(program: Program) -> None:
    use = program.weights["lstm.weight_ih_l0"]
    with pytest.raises(UnsupportedSite, match="takes 8 bits"):
        DynamicInt8(bits=4).rewrite(program, Site(id="lstm.weight_ih_l0", kind="weight", op=use.op, shape=use.shape), None)


@pytest.mark.parametrize("name", ["conv.weight", "gru.weight_ih_l0"])
def test_layers_without_a_dynamic_kernel_are_refused_by_name(program: Program, name: str) -> None:
    with pytest.raises(UnsupportedSite, match=f"{name}: .* has no dynamic kernel"):
        rewrite(program, name)


def test_a_tied_weight_is_refused(program: Program) -> None:
    with pytest.raises(UnsupportedSite, match="tied to another layer"):
        rewrite(program, "first.weight")


def test_only_linear_and_lstm_layers_are_offered() -> None:
    offered = [
        op for op in ("conv1d", "conv2d", "linear", "lstm", "gru", "embedding") if DynamicInt8.candidates(Site(id="w", kind="weight", op=op, shape=(8, 8)))
    ]  # type: ignore[arg-type]
    assert offered == ["linear", "lstm"]
