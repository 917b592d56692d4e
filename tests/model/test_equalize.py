"""Equalization leaves the function as it is."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.model.equalize import equalize_pairs
from slimline.model.program import Program


def uneven(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(torch.logspace(-2, 1, len(layer.weight)).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    return net.eval()


def test_outputs_stay_and_ranges_of_both_sides_become_alike() -> None:
    net = uneven(
        nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1, bias=False), nn.ReLU())
    )
    x = Samples.of(torch.randn(4, 2, 10, 10))
    program = Program.export(net, x[:2])
    before = program(x)
    assert equalize_pairs(program) == [("0.weight", "2.weight"), ("2.weight", "5.weight")]
    torch.testing.assert_close(program(x), before, rtol=1e-4, atol=1e-5)
    made, read = program.parameter("2.weight").abs().amax((1, 2, 3)), program.parameter("5.weight").abs().amax((0, 2, 3))
    torch.testing.assert_close(made, read, rtol=0.05, atol=1e-6)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x).relu()
        return self.b(h) + h + self.c(nn.functional.relu6(self.b.weight.sum() * h))


def test_values_with_other_readers_and_relu6_are_left_alone() -> None:
    assert equalize_pairs(Program.export(Shared().eval(), Samples.of(torch.randn(3, 4)))) == []
    assert equalize_pairs(Program.export(nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 4)).eval(), Samples.of(torch.randn(3, 4)))) == []
