"""A compression method in one file: 8-bit weights of linear layers, one scale for every group of 16, 32 or 64 inputs.

    python examples/custom_method.py

A method says which options it offers at a site and which edits it wants there. It never changes a model and
never hears of a runtime. Inside Slimline this file would be `src/slimline/methods/grouped_int8.py` and be
found by its name; a package of your own announces the class in `pyproject.toml`:

    [project.entry-points."slimline.methods"]
    grouped_int8 = "my_package.grouped_int8:GroupedInt8"

`slimline.testing.MethodSuite` then checks it as it checks the built-in ones.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from slimline import Decision, Method, Plan
from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Fingerprint
from slimline.core.site import Site


class GroupedInt8(Method):
    """Stores a linear layer's weight as 8-bit integers with one scale per ``group`` inputs."""

    name: ClassVar[str] = "grouped_int8"
    summary: ClassVar[str] = "8-bit weights of linear layers, one scale per group of inputs"
    reference: ClassVar[str] = "Jacob et al., CVPR 2018, eq. 1, per group"

    group: Literal[16, 32, 64] = 16

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        widths: tuple[Literal[16, 32, 64], ...] = (16, 32, 64)
        return tuple(cls(group=g) for g in widths if site.op == "linear" and site.shape[-1] % g == 0)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        format = Affine(bits=8, granularity="per_group", group=self.group)
        return (Encode(site.id, format, format.encode(model.parameter(site.id)), execute="float"),)


class OneLayer:
    """Stands in for the exported program: a method only ever asks it for parameters."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def parameter(self, name: str) -> torch.Tensor:
        return self.weight


def main() -> None:
    site = Site(id="head.weight", kind="weight", op="linear", shape=(10, 96))
    weight = torch.randn(10, 96, generator=torch.Generator().manual_seed(0))
    for method in GroupedInt8.candidates(site):
        (edit,) = method.rewrite(OneLayer(weight), site, None)
        assert isinstance(edit, Encode)
        error = (edit.format.decode(edit.parts) - weight).norm() / weight.norm()
        print(f"{method.label:<24} {edit.format.nbytes(edit.parts):>5} bytes of {4 * weight.numel()}, relative error {error:.4f}")
    plan = Plan(model=Fingerprint(architecture="a", weights="w"), decisions=(Decision(site=site.id, method=GroupedInt8()),))
    print("in a plan:", plan.model_dump()["decisions"])


if __name__ == "__main__":
    main()
