"""A narrower and shallower copy of a whole network, as one option; its weights are the original's.

    python examples/methods/scale.py

In a search: `slimline compress task.py --methods scale,static_int8`. It needs training data: what everything loses at once, only training brings back.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.core.edits import Keep, Replace
from slimline.methods.scale import Scale
from slimline.model.apply import apply_structure
from slimline.model.sites import find_sites
from slimline.model.structure_statistics import StructureStatistics


class Block(nn.Module):
    """Two layers beside a shortcut, ``[N, C]`` to the same shape."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x + self.narrow(functional.relu(self.wide(x))))


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), *(Block(64, 128) for _ in range(4)), nn.Linear(64, 10)).eval()
    samples = Samples.of(torch.randn(128, 16))
    whole = next(site for site in find_sites(network, samples)[0] if site.kind == "model")
    statistics = StructureStatistics.collect(network, samples, None, seed=0)
    print(f"as it is: {sum(p.numel() for p in network.parameters()):,} parameters in {len(whole.parts)} sets of channels and blocks")
    for method in Scale.candidates(whole):
        edits = [e for e in method.rewrite(network, whole, statistics) if isinstance(e, Keep | Replace)]
        smaller = apply_structure(network, edits)
        blocks = sum(isinstance(module, Block) for module in smaller.modules())
        print(
            f"{method.label}: {sum(p.numel() for p in smaller.parameters()):,} parameters, {blocks} blocks, first layer {tuple(smaller.get_parameter('0.weight').shape)}"
        )


if __name__ == "__main__":
    main()
