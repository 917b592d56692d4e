"""The demo's task: a small convolutional network for scikit-learn's 8x8 digits, trained when it is asked for.

    slimline compress examples/digits/task.py --max-drop 2% --minimize size --time 150s --out build/demo

A task file needs ``model``. ``data`` says what is trained on, chosen by and certified on. Metric (top-1) and
loss (cross-entropy) are the defaults for class scores ``[N, C]`` against ``int`` targets ``[N]``.
"""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

TRAIN, SEARCH, HOLDOUT = 900, 297, 600
EPOCHS = 12


class Block(nn.Module):
    """Two convolutions beside a shortcut: ``[N, C, H, W]`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(y)))


class DigitsNet(nn.Module):
    """Images ``[N, 1, 8, 8]`` in [0, 1] to class scores ``[N, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.block = Block(24)
        self.down = nn.Sequential(nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.down(self.block(self.stem(x))).mean((2, 3)))
        return scores


@functools.cache
def _split() -> dict[str, tuple[Tensor, Tensor]]:
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    labels = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(("train", "search", "holdout"), order.split([TRAIN, SEARCH, HOLDOUT]), strict=True))
    return {name: (images[index], labels[index]) for name, index in parts.items()}


def data(split: str) -> tuple[Tensor, Tensor]:
    return _split()[split]


def model() -> nn.Module:
    """The trained network, bit for bit the same in every process: fixed seed, one thread, one order of the samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _trained(DigitsNet()).eval()
    finally:
        torch.set_num_threads(threads)


def _trained(network: nn.Module) -> nn.Module:
    images, labels = data("train")
    steps = EPOCHS * (len(labels) // 50)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(labels)).split(50):
            shift = torch.randint(-1, 2, (2,)).tolist()
            optimizer.zero_grad()
            functional.cross_entropy(network(images[index].roll(shift, (2, 3))), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return network
