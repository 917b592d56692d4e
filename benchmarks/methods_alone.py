"""Methods each alone on a model where it should pay, against doing nothing.

    python benchmarks/methods_alone.py                          # the built-in models
    python benchmarks/methods_alone.py --only resolution --time 60s
    python benchmarks/methods_alone.py --task resnet20_cifar10.py --method resolution --minimize latency

Every row is a whole run of the job with that one method allowed: the artefact's bytes, its milliseconds in the runtime (interleaved
with the original's), multiply-adds, and its quality on samples that the search never saw, with the certified bound of the drop.

Built-in models are trained on the spot on what scikit-learn ships: a wide perceptron on the digits (low_rank, weight_only, dynamic_int8 and everything that shares weights or
makes them zero), perceptrons on digits, breast-cancer and wine measurements (feature_select, projection), a residual network on digits (block_drop, scale),
and a convolutional network on 8x8 digits enlarged to 48x48, shifted and under noise (resolution, tucker, channel_prune, static_int8). It is trained at random scales, as
networks for photographs are; one that knows a single scale loses too much on smaller images. ``--short`` takes 20 seconds a row.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn import datasets
from torch import nn
from torch.nn import functional

import slimline
from slimline.core.contracts import Task
from slimline.core.result import Report
from slimline.sources.task_file import TaskFile

EPOCHS = 40
Split = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Labelled:
    """A task over tensors."""

    splits: Split

    def example(self) -> slimline.Samples:
        return slimline.Samples.of(self.splits["search"][0][:8])

    def data(self, split: str) -> slimline.Samples | None:
        return slimline.Samples.of(*self.splits[split])

    def metric(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) == targets).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, targets)


def split(x: torch.Tensor, y: torch.Tensor) -> Split:
    """Half to train on, a sixth to choose by, a third to certify on."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    parts = order.split([len(y) // 2, len(y) // 6, len(y) - len(y) // 2 - len(y) // 6])
    return {name: (x[index], y[index]) for name, index in zip(("train", "search", "holdout"), parts, strict=True)}


def trained(network: nn.Module, splits: Split, epochs: int = EPOCHS, sizes: tuple[int, ...] = ()) -> nn.Module:
    """``sizes``: of images, one of which is drawn for each batch."""
    x, y = splits["train"]
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-3)
    steps = epochs * -(-len(y) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            batch = x[index]
            if sizes:
                size = sizes[int(torch.randint(len(sizes), ()))]
                batch = functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
            functional.cross_entropy(network(batch), y[index]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def table(load: Callable[[], object], width: int, layers: int) -> tuple[nn.Module, Labelled]:
    """A perceptron on standardised features."""
    data = load()
    x, y = torch.as_tensor(data.data, dtype=torch.float32), torch.as_tensor(data.target, dtype=torch.int64)  # type: ignore[attr-defined]
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    parts: list[nn.Module] = [nn.Linear(x.shape[1], width), nn.ReLU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(width, width), nn.ReLU()]
    splits = split(x, y)
    return trained(nn.Sequential(*parts, nn.Linear(width, int(y.max()) + 1)), splits), Labelled(splits)


class Enlarged(nn.Module):
    """Images ``[N, 1, 48, 48]`` to ten scores, pooled over all positions."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 64)
        stages = []
        for a, b in itertools.pairwise(widths):
            stages += [
                nn.Conv2d(a, b, 3, padding=1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, 3, 2, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            ]
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.stages(x).mean((2, 3)))
        return scores


def images() -> tuple[nn.Module, Labelled]:
    digits = datasets.load_digits()
    small = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    large = functional.interpolate(small, (40, 40), mode="bicubic").clamp(0, 1)
    draw = torch.Generator().manual_seed(0)
    x = torch.zeros(len(large), 1, 48, 48)
    for canvas, image, (down, right) in zip(x, large, torch.randint(0, 9, (len(large), 2), generator=draw).tolist(), strict=True):
        canvas[:, down : down + 40, right : right + 40] = image
    x += 0.2 * torch.randn(x.shape, generator=draw)
    splits = split(x, torch.as_tensor(digits.target, dtype=torch.int64))
    return trained(Enlarged(), splits, 30, sizes=(24, 32, 40, 48, 48)), Labelled(splits)


class Block(nn.Module):
    """Two convolutions beside a shortcut: ``[N, C, H, W]`` to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def residual() -> tuple[nn.Module, Labelled]:
    """Six blocks, more than 8x8 digits need."""
    digits = datasets.load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    splits = split(x, torch.as_tensor(digits.target, dtype=torch.int64))
    network = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), *(Block(24) for _ in range(6)), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
    return trained(network, splits, 15), Labelled(splits)


Case = tuple[str, str, Callable[[], tuple[nn.Module, Task]]]
CASES: dict[str, Case] = {
    "digits 64-384-384-10": ("low_rank", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-128-10": ("feature_select", "size", lambda: table(datasets.load_digits, 128, 1)),
    "breast cancer 30-64-2": ("feature_select", "size", lambda: table(datasets.load_breast_cancer, 64, 1)),
    "wine 13-64-3": ("feature_select", "size", lambda: table(datasets.load_wine, 64, 1)),
    "digits 48x48, 6 convolutions": ("resolution", "latency", images),
    "digits 48x48, 6 convolutions, again": ("tucker", "size", images),
    "digits 64-384-384-10, zeros": ("unstructured", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, a pattern": ("n_m", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, shared": ("codebook", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, blocks of zeros": ("block_sparse", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, vectors": ("product", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, few bits": ("weight_only", "size", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-384-10, integers": ("dynamic_int8", "latency", lambda: table(datasets.load_digits, 384, 2)),
    "digits 64-384-10": ("projection", "size", lambda: table(datasets.load_digits, 384, 1)),
    "digits 8x8, 6 blocks": ("block_drop", "latency", residual),
    "digits 8x8, 6 blocks, smaller": ("scale", "latency", residual),
    "digits 48x48, 6 convolutions, narrower": ("channel_prune", "latency", images),
    "digits 48x48, 6 convolutions, integers": ("static_int8", "latency", images),
}


def row(name: str, method: str, report: Report) -> str:
    a, b = report.baseline, report.compressed
    assert b is not None and a.quality is not None and b.quality is not None
    bound = "" if report.drop is None else f", drop at most {report.drop.upper_95:.4f}"
    chosen = ", ".join(f"{d.site}: {d.method} {d.options}" for d in report.decisions if d.method == method)[:120]
    costs = f"bytes {a.size_bytes:>9,} -> {b.size_bytes:>9,}   ms {a.latency_ms.median:.4f} -> {b.latency_ms.median:.4f}   multiply-adds {a.macs:>11,} -> {b.macs:>11,}"
    quality = f"quality {a.quality:.4f} -> {b.quality:.4f}{bound}"
    return f"{name} | {method}: {report.verdict}; {chosen or 'nothing was worth it'}\n    {costs}   {quality}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="methods whose built-in models to run, comma-separated")
    parser.add_argument("--time", default="40s")
    parser.add_argument("--short", action="store_true", help="20 s a row")
    parser.add_argument("--max-drop", default="2%")
    parser.add_argument("--task", type=Path, help="a task file of your own in place of the built-in models")
    parser.add_argument("--method", default="resolution", help="with --task")
    parser.add_argument("--minimize", default="latency", help="with --task")
    options = parser.parse_args()
    if options.short:
        options.time = "20s"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.task is not None:
        source = TaskFile.load(str(options.task))
        cases: dict[str, Case] = {source.name: (options.method, options.minimize, lambda: (source.model(), source))}
    else:
        wanted = set(filter(None, options.only.split(",")))
        cases = {n: c for n, c in CASES.items() if not wanted or c[0] in wanted}
    for name, (method, quantity, make) in cases.items():
        model, task = make()
        budget = slimline.Budget(max_drop=options.max_drop, minimize=quantity)
        with tempfile.TemporaryDirectory() as folder:
            result = slimline.compress(model, task, budget=budget, time=options.time, out=folder, methods=(method,), force=True)
        for text in result.report.not_checked:
            print(f"    {text}", file=sys.stderr)
        print(row(name, method, result.report), flush=True)
        predicted = result.report.predictions
        print(
            f"    predicted against measured: bytes off by {predicted.size_error or 0:.1%}, milliseconds by {predicted.latency_error or 0:.1%}", file=sys.stderr
        )


if __name__ == "__main__":
    main()
