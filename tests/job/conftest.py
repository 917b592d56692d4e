"""A small task whose jobs take seconds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.job import _PythonTask


class Rings:
    """Points of the plane in four classes, by their distance from the origin."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(0)
        x = torch.randn(1200, 8, generator=made)
        y = x.norm(dim=1)
        self.x, self.y = x, torch.bucketize(y, y.quantile(torch.tensor([0.25, 0.5, 0.75])))

    def example(self) -> Samples:
        return Samples.of(self.x[:2])

    def data(self, split: str) -> Samples:
        part = {"train": slice(0, 800), "search": slice(800, 1000), "holdout": slice(1000, 1200)}[split]
        return Samples.of(self.x[part], self.y[part])


def net(task: Rings) -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(task.x[:800]), task.y[:800]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def rings() -> _PythonTask:
    torch.manual_seed(0)
    task = Rings()
    return _PythonTask(net(task), task)
