"""Leaving out whole residual blocks: what each one is worth, before any training.

    python examples/methods/block_drop.py

In a search: `slimline compress task.py --methods block_drop,static_int8 --minimize latency`. Every layer costs time whatever its width, so it pays in milliseconds
first of all; what the block did only training brings back.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.methods.block_drop import BlockDrop
from slimline.model.apply import apply_structure
from slimline.model.sites import find_sites


class Block(nn.Module):
    """Two layers beside a shortcut, ``[N, C]`` to the same shape."""

    def __init__(self, width: int, size: float) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        with torch.no_grad():
            self.narrow.weight.mul_(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.narrow(functional.relu(self.wide(x))))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), *(Block(32, size) for size in (3.0, 0.3, 1.0)), nn.Linear(32, 10)).eval()
    x = torch.randn(256, 16)
    wanted = network(x)
    for site in find_sites(network, Samples.of(x[:2]))[0]:
        for method in BlockDrop.candidates(site):
            assert isinstance(method, BlockDrop)
            shallower = apply_structure(network, method.rewrite(network, site, None))
            error = float((shallower(x) - wanted).norm() / wanted.norm())
            print(f"without {site.module}: {sum(p.numel() for p in shallower.parameters()):,} parameters, error of the outputs {error:.1%}")


if __name__ == "__main__":
    main()
