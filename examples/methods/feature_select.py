"""Which of 30 measurements a tumour classifier needs, and the narrower network that reads only those.

    python examples/methods/feature_select.py

In a search: `slimline compress task.py --methods feature_select`, or leave `--methods` out and it is one option among all.
The artefact takes all 30 measurements and gathers the kept ones itself, so whoever calls it need not change.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.methods.feature_select import FeatureSelect
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.reconstruct import reconstruct
from slimline.model.structure_statistics import StructureStatistics


def main() -> None:
    torch.manual_seed(0)
    table = load_breast_cancer()
    x, y = torch.as_tensor(table.data, dtype=torch.float32), torch.as_tensor(table.target, dtype=torch.int64)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(y))
    train, test = order[:300], order[300:]
    network = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(40):
        for part in train[torch.randperm(300)].split(50):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[part]), y[part]).backward()
            optimizer.step()
    network.eval()

    def accuracy(model: nn.Module) -> float:
        return float((model(x[test]).argmax(1) == y[test]).float().mean())

    samples = Samples.of(x[train], y[train])
    (site,), _ = find_input_sites(network, samples)
    statistics = StructureStatistics.collect(network, samples, functional.cross_entropy, seed=0)
    print(f"all 30 measurements: {accuracy(network):.1%} of {len(test)} held-out cases right")
    for method in FeatureSelect.candidates(site):
        edits = method.rewrite(network, site, statistics)
        narrow = reconstruct(network, apply_structure(network, edits), edits, samples)  # least squares: what went is made up for
        print(f"{method.label}: {accuracy(narrow):.1%} right, first layer {tuple(narrow.get_parameter('0.weight').shape)}")
    print("kept at last:", ", ".join(str(table.feature_names[i]) for i in edits[0].index))


if __name__ == "__main__":
    main()
