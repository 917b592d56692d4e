"""A plan inside a training loop of your own: `slimline.prepare`, `step()`, `export()`.

    python examples/own_training.py [OUT.onnx]

The plan usually comes from a search (`plan.json` of an earlier run); here it is written by hand: half of the hidden channels, three quarters of the
inputs, and integers for the first two layers. It comes into force little by little while the loop runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import slimline
from slimline import Decision, Plan
from slimline.job.own_training import Training
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.feature_select import FeatureSelect
from slimline.methods.static_int8 import StaticInt8
from slimline.store.cache import fingerprint

STEPS = 300


def main(out: Path) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.as_tensor(digits.data, dtype=torch.float32) / 16, torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y))
    train, test = order[:1200], order[1200:]
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def loop(module: nn.Module, training: Training | None = None) -> None:
        optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
        for _ in range(STEPS):
            part = train[torch.randint(len(train), (64,))]
            optimizer.zero_grad()
            functional.cross_entropy(module(x[part]), y[part]).backward()
            optimizer.step()
            if training is not None:
                training.step()

    def accuracy(module: nn.Module) -> float:
        return float((module(x[test]).argmax(1) == y[test]).float().mean())

    loop(network)
    plan = Plan(
        model=fingerprint(network, {}),
        decisions=(
            Decision(site="#input.0", method=FeatureSelect(count=48)),
            Decision(site="0#channels", method=ChannelPrune(keep=0.5)),
            Decision(site="0.weight", method=StaticInt8()),
            Decision(site="2.weight", method=StaticInt8()),
        ),
    )
    training = slimline.prepare(network, plan, x[train[:512]], targets=y[train[:512]], loss=functional.cross_entropy, steps=STEPS)
    loop(training.module, training)
    compressed = training.finish()
    print(f"before: {accuracy(network.eval()):.1%} right; after, in float: {accuracy(compressed):.1%}")
    print("first layer:", tuple(network.get_parameter("0.weight").shape), "->", tuple(compressed.get_parameter("0.weight").shape))
    artefact = training.export(out)
    print(f"{out.name}: {artefact.size_bytes:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("own_training.onnx"))
