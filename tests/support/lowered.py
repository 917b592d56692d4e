"""Small image models for targets, what they are stored as, and how far an artefact may lie from its program."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.contracts import Target
from slimline.core.edits import Numerics
from slimline.core.plan import Method
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.model.between import completing
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics


class Residual(nn.Module):
    """A stem, a depthwise layer, a strided block with a projection, a mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(16, 24, 1, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.nn.functional.relu6(self.depth(y))
        y = torch.relu(self.down(y) + self.skip(y))
        out: torch.Tensor = self.head(y.mean((2, 3)))
        return out


class Flat(nn.Module):
    """Pooling, then a flattened map into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 5 * 3, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))))
        return out


def images(count: int = 32) -> Samples:
    return Samples.of(torch.randn(count, 3, 12, 8, generator=torch.Generator().manual_seed(1)))


def exported(module: nn.Module, samples: Samples) -> Program:
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_()  # type: ignore[union-attr]
    return Program.export(module.eval(), samples)


def stored(program: Program, samples: Samples, method: Method) -> Program:
    """With the method wherever it is legal, and the values between put on grids."""
    statistics, edits = ProgramStatistics(program, samples), []
    for name, use in program.weights.items():
        try:
            edits += method.rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)
        except UnsupportedSite:
            continue
    found: list[Numerics] = edits  # type: ignore[assignment]
    return freeze(quantize(program, [*found, *completing(program, statistics, found)]))


def apart(target: Target, program: Program, samples: Samples) -> float:
    """Largest difference of the artefact's outputs, as a share of the output's range."""
    got, expected = target.run(target.lower(program, samples), samples, batch=7)[0], program.run(samples).outputs[0].detach()
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / (expected.max() - expected.min()))
