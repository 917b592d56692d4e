"""Shared weights: entries, indices, and what each start and rounding is worth."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode, SetParameter
from slimline.core.formats import Affine, Codebook
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.codebook import SharedWeights
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.codebook import centroids, distortion


@functools.cache
def net() -> tuple[Program, ProgramStatistics]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
        samples = Samples.of(torch.randn(64, 4, 6, 6) * torch.linspace(0.1, 2, 6))
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def encoded(method: SharedWeights | StaticInt8, name: str = "3.weight") -> Encode:
    use = net()[0].weights[name]
    edits = method.rewrite(net()[0], Site(id=name, kind="weight", op=use.op, shape=use.shape), net()[1])
    return next(e for e in edits if isinstance(e, Encode))


def error(edit: Encode) -> float:
    """Mean squared change of the layer's output."""
    moment = net()[1].moment(edit.parameter)
    assert moment is not None
    delta = (edit.format.decode(edit.parts) - net()[0].parameter(edit.parameter).detach()).flatten(1)
    return float(((delta @ moment) * delta).sum())


@pytest.mark.parametrize("k", [4, 8, 16, 100])
@pytest.mark.parametrize("values", ["int8", "float32"])
def test_no_more_than_k_values_a_layer(k: int, values: str) -> None:
    method = SharedWeights.model_validate({"k": k, "values": values, "execute": "float"})
    edit = encoded(method)
    assert int(edit.parts["indices"].max()) < k and edit.parts["codebook"].shape == (k,)
    if values == "float32":
        assert len(edit.format.decode(edit.parts).unique()) <= k


@pytest.mark.parametrize("name", ["0.weight", "3.weight"])
def test_entries_by_k_means_lose_less_than_even_steps_of_the_same_bits(name: str) -> None:
    for k, bits in ((4, 2), (16, 4)):
        assert error(encoded(SharedWeights(k=k), name)) < error(encoded(StaticInt8.model_validate({"bits": bits, "rounding": "second_order"}), name))


def test_choosing_entries_by_the_outputs_error_loses_less_than_the_nearest() -> None:
    assert error(encoded(SharedWeights(k=8))) < 0.9 * error(encoded(SharedWeights(k=8, rounding="nearest")))


def test_hessian_takes_the_better_start_and_the_weights_count() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2000, generator=draw), torch.rand(2000, generator=draw) ** 4
    found = {init: distortion(x, centroids(x, 8, init, weights), weights) for init in ("linear", "density", "hessian")}  # type: ignore[arg-type]
    assert found["hessian"] < min(found["linear"], found["density"])
    assert torch.equal(centroids(x, 8, "hessian"), min((centroids(x, 8, i) for i in ("linear", "density")), key=lambda c: distortion(x, c)))  # type: ignore[arg-type]


def test_integer_entries_execute_in_integers_with_the_bias_corrected() -> None:
    use = net()[0].weights["0.weight"]
    edits = SharedWeights().rewrite(net()[0], Site(id="0.weight", kind="weight", op=use.op, shape=use.shape), net()[1])
    assert isinstance(edits[0], Encode) and edits[0].execute == "integer" and edits[0].format == Codebook(k=16, values=Affine())
    assert isinstance(edits[-1], SetParameter)
    with pytest.raises(UnsupportedSite, match="float entries do not execute in integers"):
        encoded(SharedWeights(values="float32"))


def test_it_is_offered_for_large_enough_weights_of_any_kind() -> None:
    assert [m.label for m in SharedWeights.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(64, 64)))] == [
        "codebook",
        "codebook(k=8)",
        "codebook(k=4)",
    ]
    (only,) = SharedWeights.candidates(Site(id="a.weight", kind="weight", op="embedding", shape=(64, 64)))
    assert isinstance(only, SharedWeights) and only.execute == "float"
    assert SharedWeights.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(4, 64))) == ()
