"""Exporting a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.errors import ModelError
from slimline.model.trace import STEPPED, dynamic_batch, trace


def test_the_batch_is_free() -> None:
    program = trace(nn.Linear(3, 2).eval(), Samples.of(torch.zeros(4, 3)))
    assert dynamic_batch(program)
    assert program.module()(torch.zeros(7, 3)).shape == (7, 2)


def test_one_sample_is_enough() -> None:
    program = trace(nn.Linear(3, 2).eval(), Samples.of(torch.zeros(1, 3)))
    assert program.module()(torch.zeros(5, 3)).shape == (5, 2)


def test_operations_stay_whole() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    targets = {n.target for n in trace(net, Samples.of(torch.zeros(2, 3, 8, 8))).graph.nodes if n.op == "call_function"}
    assert targets == {torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default}


class Named(nn.Module):
    def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> torch.Tensor:
        return a + b


def test_named_inputs_have_a_free_batch_too() -> None:
    program = trace(Named().eval(), Samples((torch.zeros(2, 3),), {"b": torch.zeros(2, 3)}))
    assert program.module()(torch.zeros(5, 3), b=torch.zeros(5, 3)).shape == (5, 3)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_the_error_names_the_line_that_stops_it_and_nothing_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"test_trace\.py:\d+"):
        trace(Branching().eval(), Samples.of(torch.zeros(2, 3)))
    said = capsys.readouterr()
    assert said.out + said.err == ""


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
        super().__init__()
        self.layer = kind(4, 3, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = self.layer(x)
        return y, state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_time_steps_are_not_gone_through(kind: type[nn.LSTM | nn.GRU | nn.RNN], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own kernels for shapes take a minute for 200 steps."""

    def stepped(*args: object) -> None:
        raise AssertionError("gone through")

    for op in STEPPED:
        for key in op.py_kernels:
            monkeypatch.setitem(op.py_kernels, key, stepped)
        op._dispatch_cache.clear()
    model = Recurrent(kind).eval()
    program = trace(model, Samples.of(torch.zeros(2, 7, 4)))
    monkeypatch.undo()
    for op in STEPPED:
        op._dispatch_cache.clear()
    x = torch.randn(5, 7, 4)
    for got, expected in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(got, expected)
