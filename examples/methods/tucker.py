"""One convolution as three cheap ones, with and without a look at its inputs.

    python examples/methods/tucker.py

In a search: `slimline compress task.py --methods tucker,static_int8`. It pays where a layer is wide and its channels are correlated.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from slimline import Samples
from slimline.core.site import Site
from slimline.methods.tucker import Tucker
from slimline.model.apply import apply_structure
from slimline.model.structure_statistics import StructureStatistics


@torch.no_grad()
def measured(network: nn.Module, new: nn.Module, x: torch.Tensor) -> float:
    """Relative error of the first layer's output."""
    wanted = network.get_submodule("0")(x)
    return float((new.get_submodule("0")(x) - wanted).norm() / wanted.norm())


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 1)).eval()
    x = torch.einsum("nchw,dc->ndhw", torch.randn(32, 12, 12, 12), torch.randn(32, 12)) + 0.1 * torch.randn(32, 32, 12, 12)  # 12 causes behind 32 channels
    statistics = StructureStatistics.collect(network, Samples.of(x), None, seed=0, moments=True)
    site = Site(id="0.weight", kind="weight", op="conv2d", shape=(64, 32, 3, 3))
    for method in Tucker.candidates(site):
        assert isinstance(method, Tucker)
        errors = []
        for known in (None, statistics):
            new = apply_structure(network, method.rewrite(network, site, known))
            errors.append(measured(network, new, x))
        shapes = [tuple(p.shape) for p in new.get_submodule("0").parameters() if p.ndim > 1]
        kept = sum(map(math.prod, shapes)) / math.prod(site.shape)
        print(
            f"{method.label:<28} {shapes}: {kept:.0%} of the elements, output error {errors[0]:.3f} from the weights alone, {errors[1]:.3f} knowing the inputs"
        )


if __name__ == "__main__":
    main()
