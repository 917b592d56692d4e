"""Product codes: as few bits as promised, less lost than by single entries of the same bits, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Product
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.methods.codebook import SharedWeights
from slimline.methods.product import ProductCodes
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.vectors import encode_vectors


@functools.cache
def net() -> tuple[Program, ProgramStatistics]:
    """Layers whose neighbouring weights are alike, as trained ones' are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 6)).eval()
        with torch.no_grad():
            shapes = torch.randn(12, 4)
            model[3].weight.copy_((shapes[torch.randint(12, (128, 64))] + 0.2 * torch.randn(128, 64, 4)).flatten(1))  # type: ignore[operator, union-attr]
        samples = Samples.of(torch.randn(64, 8, 6, 6) * torch.linspace(0.1, 2, 6))
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def encoded(method: Any, name: str = "3.weight") -> Encode:
    use = net()[0].weights[name]
    edits = method.rewrite(net()[0], Site(id=name, kind="weight", op=use.op, shape=use.shape), net()[1])
    return next(e for e in edits if isinstance(e, Encode))


def error(edit: Encode) -> float:
    moment = net()[1].moment(edit.parameter)
    assert moment is not None
    delta = (edit.format.decode(edit.parts) - net()[0].parameter(edit.parameter).detach()).flatten(1)
    return float(((delta @ moment) * delta).sum())


@pytest.mark.parametrize(("k", "d", "bits"), [(256, 4, 2), (16, 4, 1), (256, 8, 1)])
def test_a_weight_takes_the_bits_of_an_index_divided_by_its_run(k: int, d: int, bits: int) -> None:
    edit = encoded(ProductCodes(k=k, d=d))
    weight = net()[0].parameter("3.weight")
    assert edit.format.nbytes(edit.parts) == weight.numel() * bits // 8 + k * d + 4 * 128 == edit.format.estimate(tuple(weight.shape))
    assert len(edit.format.decode(edit.parts).div(edit.parts["scale"][:, None]).unflatten(1, (-1, d)).flatten(0, 1).round().unique(dim=0)) <= k


def test_vectors_lose_less_than_single_entries_of_the_same_bits() -> None:
    assert error(encoded(ProductCodes())) < 0.8 * error(encoded(SharedWeights(k=4)))


@pytest.mark.parametrize("name", ["0.weight", "3.weight"])
def test_choosing_vectors_by_the_outputs_error_loses_less_than_the_nearest(name: str) -> None:
    assert error(encoded(ProductCodes(k=64), name)) < error(encoded(ProductCodes(k=64, rounding="nearest"), name))


def test_a_grouped_convolution_is_settled_group_by_group() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(8, 4, 3, 3), torch.randn(2, 500, 36)
    moments = x.transpose(1, 2) @ x / 500
    format = Product(k=8, d=2)
    whole = encode_vectors(weight, format, moments)
    assert whole["indices"].shape == (8, 2, 3, 3)
    delta = (format.decode(whole) - weight).reshape(2, 4, 36)
    near = (format.decode(format.encode(weight)) - weight).reshape(2, 4, 36)
    assert float(((delta @ moments) * delta).sum()) < float(((near @ moments) * near).sum())


def test_it_executes_in_integers_and_float_entries_do_not() -> None:
    edit = encoded(ProductCodes())
    assert edit.execute == "integer" and edit.format.grid == Affine() and edit.format.whole
    assert encoded(ProductCodes(values="float32", execute="float")).format.grid is None
    with pytest.raises(UnsupportedSite, match="float entries do not execute in integers"):
        encoded(ProductCodes(values="float32"))


def test_small_layers_get_no_offer_and_runs_that_do_not_divide_are_refused() -> None:
    assert [m.label for m in ProductCodes.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(256, 68)))] == ["product"]
    assert [m.label for m in ProductCodes.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(64, 68)))] == ["product(k=64)"]
    assert ProductCodes.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(32, 64))) == ()
    with pytest.raises(UnsupportedSite, match="no multiple of 5"):
        encoded(ProductCodes(d=5))
    with pytest.raises(UnsupportedFormat, match="one scale"):
        Product(values=Affine(axis=1))
