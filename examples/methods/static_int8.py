"""Integers in a layer: how ranges are set, how weights are rounded, and what powers of two for steps cost.

    python examples/methods/static_int8.py

In a search: `slimline compress task.py --methods static_int8`, the first thing to try on any processor with integer kernels. Layers that lose too much stay in float
(the method `keep`, which is always there) or are stored in 8 bits beside others in 4 and 2.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode, Numerics, QuantizeValue, SetParameter
from slimline.core.site import Site
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    x = torch.randn(256, 3, 8, 8) * torch.linspace(0.1, 2, 8)
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    wanted = program(Samples.of(x))
    settings = (
        *({"range": r} for r in ("minmax", "percentile", "mse")),
        {"rounding": "second_order"},
        {"power_of_two": True},
        *({"bits": b, "rounding": r} for b in (4, 2) for r in ("nearest", "second_order")),
    )
    for options in settings:
        method = StaticInt8.model_validate(options)
        edits: list[Numerics] = []
        for name, use in program.weights.items():
            wished = method.rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)
            edits += [e for e in wished if isinstance(e, Encode | QuantizeValue | SetParameter)]
        stored = freeze(quantize(program, edits))
        size = sum(e.format.nbytes(e.parts) for e in stored.encoded.values())
        error = float((stored(Samples.of(x)) - wanted).norm() / wanted.norm())
        print(f"{method.label:45s} {size:6,d} bytes, error of the outputs {error:.2%}")


if __name__ == "__main__":
    main()
