"""What the workshop keeps, so that it is not made again."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn

from slimline.core.contracts import Target
from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.samples import Samples
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.search.workshop import Workshop

MADE: list[str] = []


class Slow(Method):
    name: ClassVar[str] = "slow"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        MADE.append(site.id)
        format = Affine(bits=8)
        return (Encode(site.id, format, format.encode(model.parameter(site.id)), "integer"),)


class Nothing:
    """A runtime that executes no format."""

    name = "nothing"

    def executes(self, format: object, op: str, execute: str) -> bool:
        return False


def test_what_the_target_refused_of_one_layer_is_not_made_for_the_next() -> None:
    MADE.clear()
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    workshop = Workshop(model, Samples.of(torch.randn(2, 16)), None, (), cast(Target, Nothing()))
    for name in workshop.program.weights:
        with pytest.raises(UnsupportedSite, match="nothing does not execute"):
            workshop.numeric_edits(workshop.program, name, Slow(), None)
    assert len(MADE) == 1 and workshop.refused("linear", Slow()) and not workshop.refused("embedding", Slow())
