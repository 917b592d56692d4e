"""Train the network of `task.py` and write `weights.safetensors`: `python train.py [SEED]`. Another seed is next week's retraining."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from task import data, model  # type: ignore[import-not-found]  # beside this file, as for Python itself
from torch.nn import functional

EPOCHS, BATCH = 12, 100


def train(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = model().train()
    points, kinds = data("train")
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(kinds)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(network(points[index]), kinds[index]).backward()
            optimizer.step()
    points, kinds = data("holdout")
    print(f"seed {seed}: {float((network.eval()(points).argmax(1) == kinds).float().mean()):.2%} of the holdout samples right")
    state: dict[str, torch.Tensor] = network.state_dict()
    return state


if __name__ == "__main__":
    save_file(train(int(sys.argv[1]) if len(sys.argv) > 1 else 0), Path(__file__).with_name("weights.safetensors"))
