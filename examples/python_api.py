"""Compressing from Python: a model, a task object, a budget.

    python examples/python_api.py

A task object has the four functions of a task file: ``example``, ``data``, ``metric``, ``loss``.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import slimline
from slimline import Budget, Samples


class Digits:
    """scikit-learn's digits as flat images ``[N, 64]`` in [0, 1] with labels ``[N]``."""

    def __init__(self) -> None:
        digits = load_digits()
        inputs = torch.as_tensor(digits.data, dtype=torch.float32) / 16
        labels = torch.as_tensor(digits.target, dtype=torch.int64)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        sizes = {"train": 800, "search": 297, "holdout": 700}
        self.parts = {name: Samples.of(inputs[index], labels[index]) for name, index in zip(sizes, order.split([*sizes.values()]), strict=True)}

    def example(self) -> Samples:
        return self.parts["search"][:2]

    def data(self, split: str) -> Samples | None:
        return self.parts.get(split)

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the top class is right: per-sample scores allow the exact paired test."""
        return (outputs.argmax(1) == targets).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


def trained(task: Digits) -> nn.Module:
    """A small perceptron, the same in every run."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))
    samples = task.data("train")
    assert samples is not None
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        for batch in samples[torch.randperm(len(samples))].batches(50):
            optimizer.zero_grad()
            task.loss(network(*batch.args), batch.targets).backward()
            optimizer.step()
    return network.eval()


def main(out: str = "build/python_api", time: str = "30s") -> None:
    task = Digits()
    result = slimline.compress(trained(task), task, budget=Budget(max_drop="2%", minimize="size"), time=time, out=out, force=True)
    print(result.report.sentence)
    small = result.load()
    print("a torch module again:", type(small).__name__, tuple(small(*task.example().args).shape))
    print("the report:", result.directory / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
