"""What a compressed network can learn from the original: its answers, its features, where it looks; and masks that grow while it trains.

    python examples/recovery.py

`slimline compress` trains on the answers (and on your labels, where there are any), which needs no names of layers. Features match layer by layer where widths are the same;
attention maps match where channels were removed, since they only say which places count.
"""

from __future__ import annotations

import dataclasses

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.formats import Affine, Masked
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.gradual import GradualMasks
from slimline.model.program import Program
from slimline.model.quantizers import quantize
from slimline.model.recover import Distillation, distil
from slimline.model.sites import find_sites
from slimline.model.structure_statistics import StructureStatistics

STEPS = 120


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y))
    known, test = order[:900], order[900:]
    network = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(6):
        for part in known[torch.randperm(len(known))].split(50):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[part]), y[part]).backward()
            optimizer.step()
    network.eval()
    samples = Samples.of(x[known])  # no labels: everything is learned from the original

    def right(outputs: torch.Tensor) -> str:
        return f"{float((outputs.argmax(1) == y[test]).float().mean()):.1%}"

    with torch.no_grad():
        print(f"original: {right(network(x[test]))}")
    site = next(s for s in find_sites(network, samples[:2])[0] if s.id == "2#channels")
    edits = ChannelPrune(keep=0.25).rewrite(network, site, StructureStatistics.collect(network, samples, None, seed=0, moments=True))
    how = Distillation(steps=STEPS, batch=64)
    for label, taught in (
        ("answers", how),
        ("answers and features", dataclasses.replace(how, features=("0",))),
        ("answers and attention", dataclasses.replace(how, attention=("2",))),
    ):
        student = apply_structure(network, edits)
        distil(student, student.parameters(), network, samples, taught, modules=student)
        with torch.no_grad():
            print(f"a quarter of the channels, taught by {label}: {right(student(x[test]))}")
    program = Program.export(network, samples[:2])
    format = Masked(values=Affine(), sparsity=0.95)
    held = Samples.of(x[test])
    for label in ("at once", "little by little"):
        training = quantize(program, [Encode("5.weight", format, format.encode(program.parameter("5.weight")))])
        gradual = GradualMasks(training.module, program.parameters(), STEPS) if label != "at once" else None
        distil(training.module, training.module.parameters(), network, samples, how, gradual=gradual)
        with torch.no_grad():
            print(f"95 % zeros in the last layer, {label}: {right(training(held))}")


if __name__ == "__main__":
    main()
