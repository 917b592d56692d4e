"""A weight stored in few bits and decoded before it is used: for any layer, without any data.

    python examples/methods/weight_only.py

In a search: `slimline compress task.py --methods weight_only --minimize size`, also without a `data` function. Embeddings and recurrent layers are its places: kernels
of theirs in integers are rare. Nothing becomes faster.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.core.edits import Encode
from slimline.core.site import Site
from slimline.methods.weight_only import WeightOnly
from slimline.model.program import Program


class Words(nn.Module):
    """The mean of embeddings, then a wide layer: tokens ``[N, T]`` to scores ``[N, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(500, 64), nn.Linear(64, 128), nn.Linear(128, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(torch.relu(self.hidden(self.embedding(tokens).mean(1))))
        return scores


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    program = Program.export(Words().eval(), Samples.of(torch.randint(500, (2, 7))))
    methods = {
        "embedding.weight": (WeightOnly(), WeightOnly(granularity="per_tensor"), WeightOnly(bits=4)),
        "hidden.weight": (WeightOnly(), WeightOnly(bits=4), WeightOnly(bits=4, group=32), WeightOnly(bits=4, power_of_two=True)),
    }
    for name, offered in methods.items():
        use, weight = program.use(name), program.parameter(name)
        for method in offered:
            (edit,) = method.rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), None)
            assert isinstance(edit, Encode)
            error = float((edit.format.decode(edit.parts) - weight).norm() / weight.norm())
            print(f"{name:17s} {method.label:36s} {edit.format.nbytes(edit.parts):7,d} of {4 * weight.numel():,} bytes, error of the weight {error:.2%}")


if __name__ == "__main__":
    main()
