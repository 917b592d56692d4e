"""Runs of weights that share whole vectors, against single entries and even steps of as many bits.

    python examples/methods/product.py

In a search: `slimline compress task.py --methods product,static_int8 --minimize size`. It is for large layers, since 256 vectors take 1 or 2 KB of their own, and for those whose
neighbouring weights have to do with each other, as trained ones' have. Training after it pays more than elsewhere: vectors are learned.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.methods.codebook import SharedWeights
from slimline.methods.product import ProductCodes
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    with torch.no_grad():  # rows that are smooth, as filters are
        rough = torch.randn(256, 260)
        network.get_parameter("0.weight").copy_(sum(rough[:, i : i + 256] for i in range(4)) / 40)  # type: ignore[arg-type]
    x = torch.randn(1024, 256)
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    site = Site(id="0.weight", kind="weight", op="linear", shape=(256, 256))
    wanted = x @ program.parameter("0.weight").detach().T
    methods: tuple[Method, ...] = (StaticInt8(bits=2, rounding="second_order"), SharedWeights(k=4), ProductCodes(), SharedWeights(k=2), ProductCodes(d=8))
    for method in methods:
        edit = method.rewrite(program, site, statistics)[0]
        assert isinstance(edit, Encode)
        error = float((x @ edit.format.decode(edit.parts).T - wanted).norm() / wanted.norm())
        print(f"{method.label:45s} {edit.format.nbytes(edit.parts):6,d} bytes, error of the outputs {error:.1%}")


if __name__ == "__main__":
    main()
