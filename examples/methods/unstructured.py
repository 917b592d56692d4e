"""Zeros in a layer: which weights go, what the others do about it, and what the file is left with.

    python examples/methods/unstructured.py

In a search: `slimline compress task.py --methods unstructured,static_int8 --minimize size`. It pays in bytes, above all in a compressed
download, where a zero costs little. It never pays in milliseconds here: no runtime in this package has sparse kernels.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.site import Site
from slimline.methods.unstructured import Unstructured
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


def main() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    x = torch.randn(512, 24) @ torch.randn(24, 128) + 0.1 * torch.randn(512, 128)  # 24 causes behind 128 inputs
    program = Program.export(network, Samples.of(x[:2]))
    statistics = ProgramStatistics(program, Samples.of(x))
    site = Site(id="0.weight", kind="weight", op="linear", shape=(64, 128))
    wanted = x @ program.parameter("0.weight").detach().T
    print("sparsity  importance     values   bytes  error of the outputs")
    for sparsity in (0.5, 0.75, 0.9):
        for importance, values in (("magnitude", "int4"), ("second_order", "int4"), ("second_order", "shared")):
            method = Unstructured.model_validate({"sparsity": sparsity, "importance": importance, "values": values})
            edit = method.rewrite(program, site, statistics)[0]
            assert isinstance(edit, Encode)
            error = float((x @ edit.format.decode(edit.parts).T - wanted).norm() / wanted.norm())
            print(f"{sparsity:8.0%}  {importance:13s}  {values:6s}  {edit.format.nbytes(edit.parts):6,d}  {error:8.1%}")


if __name__ == "__main__":
    main()
