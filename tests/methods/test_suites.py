"""The conformance suite over every registered method, and the suite itself over a method that breaks its promises."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from slimline.core.edits import Edit, SetParameter
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.testing.method_suite import MethodSuite, digest


class TestRegistered(MethodSuite):
    pass


class Careless(Method):
    """Changes the model that it is shown."""

    name: ClassVar[str] = "careless"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = ""

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        return (cls(), cls()) if site.op == "linear" else ()

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        with torch.no_grad():
            model.parameter(site.id).mul_(1.001)
        return (SetParameter("elsewhere", torch.rand(1)),)


@pytest.mark.parametrize(
    "check", ["it_says_what_it_is", "candidates_are_its_own_and_differ", "rewrite_is_pure", "edits_are_of_its_stage_and_name_what_is_there"]
)
def test_the_suite_catches_a_careless_method(check: str) -> None:
    with pytest.raises(AssertionError):
        getattr(OwnBench(), f"test_{check}")(Careless)


class OwnBench(MethodSuite):
    """With models of its own, since the careless method changes them. No name that pytest would collect."""

    def benches(self) -> Any:
        from slimline.testing.method_suite import Bench, Samples, Words

        if not hasattr(self, "_own"):
            self._own = (Bench.of(Words().eval(), Samples.of(torch.randint(0, 40, (4, 6)))),)
        return self._own


def test_the_digest_tells_edits_apart_by_content() -> None:
    a, b = (SetParameter("w", torch.full((2,), v)) for v in (1.0, 2.0))
    assert digest(a) == digest(SetParameter("w", torch.ones(2))) != digest(b)
