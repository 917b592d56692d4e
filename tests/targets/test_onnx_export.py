"""Graphs that the exporter need not decompose, and those that it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """As torchvision's networks are written: nothing reads what is changed but what comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.a(x))
        y = self.b(x)
        y += x
        y = nn.functional.hardswish(y, inplace=True)
        y = nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)
        scores: torch.Tensor = self.head(nn.functional.dropout(y, 0.2, self.training, inplace=True))
        return scores


class Seen(InPlace):
    """What is changed is read again afterwards, once as itself and once through a view of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = torch.relu_(x)
        z = self.b(x)
        flat = z.flatten(2)
        z.mul_(2.0)
        scores: torch.Tensor = self.head((x + y).mean((2, 3)) + flat.mean(2))
        return scores


@pytest.mark.parametrize(("kind", "decomposed"), [(InPlace, False), (Seen, True)])
def test_only_what_must_be_is_decomposed(kind: type[nn.Module], decomposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    own = torch.export.ExportedProgram.run_decompositions

    def run_decompositions(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(self)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", run_decompositions)
    torch.manual_seed(0)
    model, target, samples = kind().eval(), OnnxRuntime(), Samples.of(IMAGE)
    artifact = target.lower(Program.export(model, samples), samples)
    assert bool(called) is decomposed
    with torch.no_grad():
        torch.testing.assert_close(target.run(artifact, samples)[0], model(IMAGE.clone()), rtol=1e-4, atol=1e-5)
