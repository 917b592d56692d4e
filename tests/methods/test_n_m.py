"""Patterns of n in m: legal, along the inputs, and refused where they do not fit."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.methods.n_m import NM
from slimline.methods.unstructured import Unstructured
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


@functools.cache
def net() -> tuple[Program, ProgramStatistics]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 12)).eval()
        samples = Samples.of(torch.randn(32, 3, 8, 8))
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def site(name: str) -> Site:
    use = net()[0].weights[name]
    return Site(id=name, kind="weight", op=use.op, shape=use.shape)


def encoded(method: Any, name: str) -> Encode:
    return next(e for e in method.rewrite(net()[0], site(name), net()[1]) if isinstance(e, Encode))


@pytest.mark.parametrize("name", ["2.weight", "5.weight"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("importance", ["magnitude", "second_order"])
def test_every_run_of_inputs_keeps_n_of_m(name: str, n: int, m: int, importance: str) -> None:
    edit = encoded(NM.model_validate({"n": n, "m": m, "importance": importance}), name)
    runs = edit.format.decode(edit.parts).movedim(1, -1).unflatten(-1, (-1, m))
    assert (edit.parts["mask"].movedim(1, -1).unflatten(-1, (-1, m)).sum(-1) == n).all()
    assert ((runs != 0).sum(-1) <= n).all()
    assert edit.execute == "integer" and edit.format.whole


def test_a_pattern_loses_more_than_free_choice() -> None:
    program, statistics = net()
    moment, weight = statistics.moment("2.weight"), program.parameter("2.weight").detach()
    assert moment is not None

    def error(method: Any) -> float:
        edit = encoded(method, "2.weight")
        delta = (edit.format.decode(edit.parts) - weight).flatten(1)
        return float(((delta @ moment) * delta).sum())

    assert error(Unstructured(sparsity=0.5, values="int8")) < error(NM(n=4, m=8)) < error(NM())


def test_what_does_not_divide_is_refused_and_not_offered() -> None:
    assert NM.candidates(Site(id="0.weight", kind="weight", op="conv2d", shape=(64, 3, 3, 3))) == ()
    assert len(NM.candidates(Site(id="0.weight", kind="weight", op="conv2d", shape=(64, 12, 3, 3)))) == 1
    with pytest.raises(UnsupportedSite, match="no multiple of 4"):
        encoded(NM(), "0.weight")
    with pytest.raises(UnsupportedFormat, match="no pattern"):
        NM(n=4, m=4)
