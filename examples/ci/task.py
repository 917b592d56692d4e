"""The model of this example repository: points of ten kinds in 32 dimensions, told apart by a small network.

`train.py` makes `weights.safetensors`; `slimline.yaml` names both files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS, DIMENSIONS = 10, 32
SAMPLES = {"train": 4_000, "search": 2_000, "holdout": 6_000}
SPREAD = 1.1


def data(split: str) -> tuple[Tensor, Tensor]:
    """Points ``[N, 32]`` around ten centres, and which of them each belongs to ``[N]``."""
    centres = torch.randn(KINDS, DIMENSIONS, generator=torch.Generator().manual_seed(0)) * 0.7
    draw = torch.Generator().manual_seed(len(split))
    kinds = torch.randint(0, KINDS, (SAMPLES[split],), generator=draw)
    return centres[kinds] + SPREAD * torch.randn(len(kinds), DIMENSIONS, generator=draw), kinds


def model() -> nn.Module:
    """The network; its weights come from the project file."""
    return nn.Sequential(nn.Linear(DIMENSIONS, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, KINDS)).eval()
