"""Two of every four weights, four of every eight, or any half: what a pattern costs against free choice.

    python examples/methods/n_m.py

In a search: `slimline compress task.py --methods n_m,static_int8 --minimize size`. The pattern is for hardware that multiplies it at twice the rate
(NVIDIA's sparse tensor cores). ONNX Runtime's CPU kernels do not: there it saves the bytes that `unstructured` at 50 % saves, and loses more.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.methods.n_m import NM
from slimline.methods.unstructured import Unstructured
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)).eval()
    x = torch.randn(64, 16, 10, 10)
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    site = Site(id="0.weight", kind="weight", op="conv2d", shape=(32, 16, 3, 3))
    bias = program.parameter("0.bias").detach()
    wanted = nn.functional.conv2d(x, program.parameter("0.weight").detach(), bias)
    methods: tuple[Method, ...] = (NM(n=2, m=4), NM(n=4, m=8), Unstructured(sparsity=0.5, values="int8"))
    for method in methods:
        edit = method.rewrite(program, site, statistics)[0]
        assert isinstance(edit, Encode)
        weight = edit.format.decode(edit.parts)
        got = nn.functional.conv2d(x, weight, bias)
        error = float((got - wanted).norm() / wanted.norm())
        print(f"{method.label:45s} {edit.format.nbytes(edit.parts):6,d} bytes, error of the outputs {error:.1%}")
    print("\nOne run of four inputs, before and after 2:4:")
    edit = NM().rewrite(program, site, statistics)[0]
    assert isinstance(edit, Encode)
    for name, weight in (("before", program.parameter("0.weight").detach()), ("after", edit.format.decode(edit.parts))):
        print(f"  {name:7s}", [round(v, 3) for v in weight[0, :4, 0, 0].tolist()])


if __name__ == "__main__":
    main()
