"""Unstructured pruning: the promises of its importances, values and execution."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode, QuantizeValue, SetParameter
from slimline.core.formats import Affine, Codebook, Masked
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.unstructured import Unstructured
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


@functools.cache
def net() -> tuple[Program, ProgramStatistics]:
    """A convolution and a wide linear layer over inputs of which some say the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
        x = torch.randn(64, 4, 6, 6)
        x[:, 1] = x[:, 0] + 0.1 * torch.randn(64, 6, 6)
    samples = Samples.of(x)
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def site(name: str = "3.weight") -> Site:
    use = net()[0].weights[name]
    return Site(id=name, kind="weight", op=use.op, shape=use.shape)


def encoded(method: Unstructured, name: str = "3.weight") -> Encode:
    return next(e for e in method.rewrite(net()[0], site(name), net()[1]) if isinstance(e, Encode))


@pytest.mark.parametrize("name", ["0.weight", "3.weight"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_the_share_of_zeros_is_what_was_asked_for(name: str, sparsity: float) -> None:
    edit = encoded(Unstructured(sparsity=sparsity, values="int8"), name)
    assert float((~edit.parts["mask"]).float().mean()) == pytest.approx(sparsity, abs=0.01)
    assert torch.equal(edit.format.decode(edit.parts) != 0, edit.parts["mask"] & (edit.parts["values"] != 0))


def test_magnitude_keeps_the_largest() -> None:
    edit = encoded(Unstructured(sparsity=0.75, importance="magnitude", values="float32", execute="float"))
    weight = net()[0].parameter("3.weight").detach()
    assert float(weight.abs()[edit.parts["mask"]].min()) >= float(weight.abs()[~edit.parts["mask"]].max())
    assert torch.equal(edit.format.decode(edit.parts)[edit.parts["mask"]], weight[edit.parts["mask"]])


@pytest.mark.parametrize("values", ["float32", "int8", "int4", "shared"])
def test_second_order_leaves_a_smaller_error_of_the_outputs_than_magnitude(values: str) -> None:
    program, statistics = net()
    name = "3.weight"
    moment, weight = statistics.moment(name), program.parameter(name).detach()
    assert moment is not None
    errors = {}
    for importance in ("magnitude", "second_order"):
        edit = encoded(Unstructured.model_validate({"sparsity": 0.75, "importance": importance, "values": values, "execute": "float"}), name)
        delta = (edit.format.decode(edit.parts) - weight).flatten(1)
        errors[importance] = float(((delta @ moment) * delta).sum())
    assert errors["second_order"] < errors["magnitude"]


@pytest.mark.parametrize("importance", ["taylor", "movement"])
def test_gradients_decide_where_they_are_asked(importance: str) -> None:
    edit = encoded(Unstructured.model_validate({"sparsity": 0.5, "importance": importance}))
    products = net()[1].products("3.weight")
    score = products.square().mean(0) if importance == "taylor" else -products.sum(0)
    assert float(score[edit.parts["mask"]].min()) >= float(score[~edit.parts["mask"]].max())


def test_the_products_are_the_loss_gradients_times_the_weights() -> None:
    program, _ = net()
    samples = Samples.of(torch.randn(8, 4, 6, 6), torch.arange(8))
    statistics = ProgramStatistics(program, samples, batch=8, loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets))
    weight = program.parameter("3.weight")
    loss = nn.functional.cross_entropy(program(samples), samples.targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(statistics.products("3.weight"), (gradient * weight.detach())[None])
    assert weight.grad is None


def test_in_integers_the_layer_gets_grids_and_its_bias_is_corrected() -> None:
    edits = Unstructured().rewrite(net()[0], site("0.weight"), net()[1])
    assert [type(e) for e in edits] == [Encode, QuantizeValue, QuantizeValue, SetParameter]
    assert isinstance(edits[0], Encode) and edits[0].execute == "integer" and edits[0].format.grid == Affine(bits=4)


def test_kept_values_can_share_entries() -> None:
    edit = encoded(Unstructured(values="shared", entries=6))
    assert edit.format == Masked(values=Codebook(k=6, values=Affine(), zero=True), sparsity=0.75)
    assert len(edit.parts["codebook"]) == 6 and int(edit.parts["codebook"][0]) == 0


def test_without_data_magnitude_in_float_is_all_there_is() -> None:
    program, _ = net()
    (edit,) = Unstructured(importance="magnitude", execute="float").rewrite(program, site(), None)
    assert isinstance(edit, Encode) and edit.execute == "float"
    with pytest.raises(UnsupportedSite, match="needs calibration samples"):
        Unstructured(execute="float").rewrite(program, site(), None)
    with pytest.raises(UnsupportedSite, match="ranges of activations need calibration"):
        Unstructured(importance="magnitude").rewrite(program, site(), None)


def test_float_values_are_refused_in_integers() -> None:
    with pytest.raises(UnsupportedSite, match="do not execute in integers"):
        encoded(Unstructured(values="float32"))


def test_small_layers_get_no_offer() -> None:
    assert Unstructured.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(10, 20))) == ()
