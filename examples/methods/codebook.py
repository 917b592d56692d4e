"""A layer whose weights share 4, 8 or 16 values, against even steps of as many bits.

    python examples/methods/codebook.py

In a search: `slimline compress task.py --methods codebook,static_int8 --minimize size`. It fills what even steps leave empty (3 bits a weight)
and loses less at 2 and 4. Entries are integers under a scale per channel, so the layer still runs in integers; indices are decoded once, at load.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.methods.codebook import SharedWeights
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        network.get_submodule("0").get_parameter("weight").normal_()  # a bell, as trained weights are; fresh ones are uniform
    x = torch.randn(512, 128) * torch.linspace(0.1, 2, 128)
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    site = Site(id="0.weight", kind="weight", op="linear", shape=(64, 128))
    wanted = x @ program.parameter("0.weight").detach().T
    methods: tuple[Method, ...] = (
        StaticInt8(bits=4, rounding="second_order"),
        SharedWeights(k=16),
        SharedWeights(k=8),
        SharedWeights(k=8, init="linear", rounding="nearest"),
        StaticInt8(bits=2, rounding="second_order"),
        SharedWeights(k=4),
    )
    for method in methods:
        edit = method.rewrite(program, site, statistics)[0]
        assert isinstance(edit, Encode)
        error = float((x @ edit.format.decode(edit.parts).T - wanted).norm() / wanted.norm())
        print(f"{method.label:45s} {edit.format.nbytes(edit.parts):6,d} bytes, error of the outputs {error:.1%}")


if __name__ == "__main__":
    main()
