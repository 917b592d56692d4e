"""Integers without calibration: the input of a layer is rounded over its own range each time that the layer runs.

    python examples/methods/dynamic_int8.py

In a search: `slimline compress task.py --methods dynamic_int8`. For transformers, whose values have outliers that fixed ranges either cut off or waste their steps on,
and for LSTMs. The range is found anew on every call, which convolutions would pay more for than they gain.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode, QuantizeValue
from slimline.core.site import Site
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.quantizers import FakeValue
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.affine import round_dynamic


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(512, 64)
    x[:4] *= 30  # a few samples are thirty times as large as the others
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    site = Site(id="0.weight", kind="weight", op="linear", shape=(64, 64))
    weight = program.parameter("0.weight").detach()
    usual = x[4:68]
    wanted = usual @ weight.T
    for method in (StaticInt8(range="minmax"), StaticInt8(), DynamicInt8(), DynamicInt8(bits=4)):
        edits = method.rewrite(program, site, statistics)
        encode = edits[0]
        assert isinstance(encode, Encode)
        grid = next((e for e in edits if isinstance(e, QuantizeValue) and e.value == program.use(site.id).input), None)
        rounded = round_dynamic(usual) if grid is None else FakeValue(grid)(usual)
        error = float((rounded @ encode.format.decode(encode.parts).T - wanted).norm() / wanted.norm())
        print(f"{method.label:28s} {encode.format.nbytes(encode.parts):5,d} bytes, error on the usual samples {error:.2%}")


if __name__ == "__main__":
    main()
