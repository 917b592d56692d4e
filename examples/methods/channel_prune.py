"""Half of a layer's channels, by each of the scores, with the next layer repaired by least squares and without.

    python examples/methods/channel_prune.py

In a search: `slimline compress task.py --methods channel_prune,static_int8`. Channels go wherever they are made and read, so the file, the multiply-adds and (in the
kernels' steps of 4, 8 or 16) the time shrink on every runtime.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from slimline import Samples
from slimline.core.edits import Keep
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.reconstruct import reconstruct
from slimline.model.sites import find_sites
from slimline.model.structure_statistics import StructureStatistics


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 5)
    )
    network.eval()
    x, y = torch.randn(128, 3, 8, 8), torch.randint(5, (128,))
    samples = Samples.of(x, y)
    site = next(s for s in find_sites(network, samples[:2])[0] if s.id == "0#channels")
    statistics = StructureStatistics.collect(network, samples, functional.cross_entropy, seed=0, moments=True)
    with torch.no_grad():
        wanted = network(x)
    for importance in ("l1", "l2", "taylor", "fisher", "second_order"):
        method = ChannelPrune.model_validate({"keep": 0.5, "importance": importance})
        edits = [e for e in method.rewrite(network, site, statistics) if isinstance(e, Keep)]
        narrow = apply_structure(network, edits)
        errors = []
        for module in (narrow, reconstruct(network, narrow, edits, samples)):
            with torch.no_grad():
                errors.append(float((module(x) - wanted).norm() / (wanted - wanted.mean(0)).norm()))
        print(f"{importance:13s} {tuple(narrow.get_parameter('3.weight').shape)}: error of the outputs {errors[0]:.1%}, after the repair {errors[1]:.1%}")


if __name__ == "__main__":
    main()
