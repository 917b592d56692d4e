"""One wide layer as two thin ones: close to its weights, or close to its outputs on the data that it sees.

    python examples/methods/low_rank.py

In a search: `slimline compress task.py --methods low_rank,static_int8 --minimize size`. It pays where a layer is wide and its inputs are correlated; the factors are
stored as any other layer, 8-bit integers among them.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.site import Site
from slimline.methods.low_rank import LowRank
from slimline.model.apply import apply_structure
from slimline.model.structure_statistics import StructureStatistics


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    x = torch.randn(512, 40) @ torch.randn(40, 256) + 0.1 * torch.randn(512, 256)  # 40 causes behind 256 inputs
    with torch.enable_grad():
        statistics = StructureStatistics.collect(network, Samples.of(x), None, seed=0, moments=True)
    wanted = network.get_submodule("0")(x)
    site = Site(id="0.weight", kind="weight", op="linear", shape=(128, 256))
    for method in LowRank.candidates(site):
        assert isinstance(method, LowRank)
        errors = []
        for known in (None, statistics):
            pair = apply_structure(network, method.rewrite(network, site, known)).get_submodule("0")
            errors.append(float((pair(x) - wanted).norm() / wanted.norm()))
        share = method.elements(site.shape) / (128 * 256)
        print(f"{method.label}: {share:.0%} of the elements, output error {errors[0]:.1%} from the weights alone, {errors[1]:.1%} knowing the inputs")


if __name__ == "__main__":
    main()
