"""64 pixels as 16 combinations of them, and a first layer that reads only those.

    python examples/methods/projection.py

In a search: `slimline compress task.py --methods projection`. It is for many correlated features and a wide first layer, or several layers that read the same input. The artefact
takes all features and makes the projection itself; recovery trains it with the rest.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.methods.projection import Projection
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.reconstruct import reconstruct
from slimline.model.structure_statistics import StructureStatistics


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[part]), y[part]).backward()
            optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.as_tensor(digits.data, dtype=torch.float32), torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y))
    known, test = order[:1200], order[1200:]
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    train(network, x[known], y[known], 10)
    network.eval()

    def accuracy(model: nn.Module) -> float:
        return float((model(x[test]).argmax(1) == y[test]).float().mean())

    samples = Samples.of(x[known], y[known])
    (site,), _ = find_input_sites(network, samples)
    statistics = StructureStatistics.collect(network, samples, functional.cross_entropy, seed=0)
    print(f"all 64 pixels: {accuracy(network):.1%} of {len(test)} held-out digits right")
    for dimensions in (32, 16, 8):
        edits = Projection(dimensions=dimensions).rewrite(network, site, statistics)
        narrow = reconstruct(network, apply_structure(network, edits), edits, samples)
        before = accuracy(narrow)
        train(narrow, x[known], y[known], 3)
        print(
            f"{dimensions} components: {before:.1%} right, {accuracy(narrow):.1%} after training; first layer {tuple(narrow.get_parameter('0.weight').shape)}"
        )


if __name__ == "__main__":
    main()
