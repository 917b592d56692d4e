from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.model import retrace
from slimline.model.program import Program
from slimline.model.retrace import Retrace


class Net(nn.Module):
    """``written``: its code writes a width into the graph."""

    def __init__(self, width: int, written: bool = False, groups: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, width, 3, groups=groups), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)
        self.tail = nn.Identity()
        self.scaled = written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.tail(self.head(x / x.shape[1] if self.scaled else x))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    seen: list[nn.Module] = []
    real = retrace.trace
    monkeypatch.setattr(retrace, "trace", lambda model, example: seen.append(model) or real(model, example))  # type: ignore[func-returns-value]
    return seen


def samples() -> Samples:
    return Samples.of(torch.randn(4, 2, 6, 6))


def equal(program: Program, model: nn.Module, given: Samples) -> bool:
    return torch.allclose(program.run(given).outputs[0], model(given.tensors[0]), atol=1e-5)


def test_a_narrower_model_is_not_traced_again(traced: list[nn.Module]) -> None:
    given = samples()
    retrace_ = Retrace(given)
    models = [Net(w).eval() for w in (8, 5, 8)]
    for model in models:
        program = retrace_.program(model)
        assert equal(program, model, given)
        own = Program.export(model, given)
        assert program.names == own.names and all(torch.equal(a, own.parameters()[n]) for n, a in program.parameters().items())
    assert traced == models[:1]
    models[1].conv.weight.data.zero_()
    assert not equal(retrace_.program(models[1]), models[2], given)
    assert equal(retrace_.program(models[0]), models[0], given), "what one model's tensors are is nothing to another"


def test_what_is_written_into_the_graph_is_traced_again(traced: list[nn.Module]) -> None:
    given = samples()
    retrace_ = Retrace(given)
    models = [Net(8, written=True).eval(), Net(5, written=True).eval()]
    assert all(equal(retrace_.program(m), m, given) for m in models)
    assert traced == models


def test_other_modules_and_attributes_are_other_graphs(traced: list[nn.Module]) -> None:
    given = samples()
    retrace_ = Retrace(given)
    models = [Net(8).eval(), Net(8, groups=2).eval(), Net(8).eval()]
    models[2].tail = nn.Tanh()
    assert all(equal(retrace_.program(m), m, given) for m in models)
    assert traced == models


def test_few_are_kept(traced: list[nn.Module]) -> None:
    given = samples()
    retrace_ = Retrace(given)
    for tail in (nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.Softplus(), nn.GELU(), nn.Tanh()):
        model = Net(4).eval()
        model.tail = tail
        assert equal(retrace_.program(model), model, given)
    assert len(traced) == 6 and len(retrace_._kept) == retrace.KEPT
