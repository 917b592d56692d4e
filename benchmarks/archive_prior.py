"""Make `src/slimline/archive/graphs.bin`, the graphs that the archive's model starts from.

    python benchmarks/archive_prior.py [OUT]

Small untrained networks of several kinds (plain, residual, depthwise, linear, attention, embedding), lowered by Slimline in the ways that its
methods store weights. Widths are drawn at random, so that no size is favoured.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import slimline.archive
from slimline.archive.onnx_file import Graph
from slimline.archive.prior import FILE, written
from slimline.core.plan import Decision, Fingerprint, Method, Plan
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.sites import find_sites
from slimline.search.workshop import Workshop


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)) if stride > 1 else nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class Residual(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, a, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1 = nn.Sequential(Block(a, a, 1), Block(a, a, 1))
        self.layer2 = nn.Sequential(Block(a, b, 2), Block(b, b, 1))
        self.fc = nn.Linear(b, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))).mean((2, 3)))
        return out


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(60, width)
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(ids)
        query, key, value = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = self.norm(x + self.dense(h))
        x = self.norm(x + self.output(F.gelu(self.intermediate(x))))
        out: torch.Tensor = self.classifier(x.mean(1))
        return out


def networks() -> Iterator[tuple[nn.Module, torch.Tensor]]:
    draw = random.Random(0)

    def width() -> int:
        return 8 * draw.randint(1, 6)

    a, b, c, d = width(), width(), width(), width()
    plain = nn.Sequential(
        nn.Conv2d(1, a, 5), nn.MaxPool2d(2), nn.Conv2d(a, b, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * b, c), nn.ReLU(), nn.Linear(c, 10)
    )
    yield plain, torch.rand(8, 1, 28, 28)
    yield nn.Sequential(nn.Flatten(), nn.Linear(64, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 10)), torch.rand(8, 64)
    yield Residual(width(), width()), torch.rand(8, 3, 16, 16)
    depthwise = nn.Sequential(
        nn.Conv2d(3, a, 3, 2, 1), nn.BatchNorm2d(a), nn.ReLU6(), nn.Conv2d(a, a, 3, 1, 1, groups=a), nn.BatchNorm2d(a), nn.ReLU6(), nn.Conv2d(a, d, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, 10),
    )  # fmt: skip
    yield depthwise, torch.rand(8, 3, 16, 16)
    yield Attention(64), torch.randint(0, 60, (8, 12))


def graphs() -> Iterator[Graph]:
    target = find("targets", "onnxruntime")()
    stored: tuple[tuple[Method, ...], ...] = (
        (),
        (DynamicInt8(), WeightOnly()),
        (WeightOnly(bits=4, group=32), WeightOnly(bits=4)),
        (StaticInt8(bits=2), StaticInt8(bits=4), WeightOnly()),
        (StaticInt8(bits=4), WeightOnly()),
        (StaticInt8(), WeightOnly()),
    )
    for methods in stored:
        for network, inputs in networks():
            torch.manual_seed(0)
            samples = Samples.of(inputs)
            sites, _ = find_sites(network.eval(), samples)
            workshop = Workshop(network, samples, samples, sites, target)
            decisions = []
            for site in (s for s in sites if s.kind == "weight"):
                for method in methods:
                    try:
                        workshop.numeric_edits(workshop.program, site.id, method, workshop.statistics)
                    except SlimlineError:
                        continue
                    decisions.append(Decision(site=site.id, method=method))
                    break
            try:
                artifact = workshop.lower(workshop.build(Plan(model=Fingerprint(architecture="", weights=""), decisions=tuple(decisions))))
            except SlimlineError as error:
                print(f"left out: {type(network).__name__} with {[m.label for m in methods]}: {error}")
                continue
            yield Graph.of(artifact.payload)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(slimline.archive.__path__[0], FILE)
    data = written(graphs())
    out.write_bytes(data)
    print(f"{out}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
