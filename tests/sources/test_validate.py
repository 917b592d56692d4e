"""Bad models and data are found before the search, and named."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError
from slimline.sources import validate


class Net(nn.Module):
    """A linear layer, and a function of its output and input as the output."""

    def __init__(self, then: Any) -> None:
        super().__init__()
        self.fc, self.then = nn.Linear(4, 3), then
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.then(self.fc(x), x)


def of(inputs: Any, targets: Any = None) -> Samples:
    return Samples.of(inputs, targets)


def test_training_modules_are_named_at_most_five() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8))).eval()
    for layer in model:
        layer.train()
    with pytest.raises(ModelError, match=r"training mode \(0, 1, 2, 3, 4 and 3 more\).*model\.eval\(\)"):
        validate.check_model(model)


@pytest.mark.parametrize(("model", "says"), [
    (lambda x: x, "is a function, not a torch"),
    (nn.ReLU().eval(), "no parameters"),
    (nn.Linear(2, 2).half().eval(), r"weight in float16.*float\(\)"),
    (nn.Linear(2, 2, device="meta").eval(), "no values in its parameter weight yet"),
    (nn.LazyLinear(2).eval(), "no values in its parameter weight yet.*lazy"),
    (torch.jit.trace(nn.Linear(2, 2).eval(), torch.zeros(1, 2)), "TorchScript"),
])  # fmt: skip
def test_unusable_models_are_refused(model: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        validate.check_model(model)


def test_parameters_that_are_not_finite_are_counted() -> None:
    model = nn.Linear(2, 2).eval()
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="1 values of 4 in weight"):
        validate.check_model(model)


def test_nan_in_inputs_is_counted_and_the_first_found_across_blocks() -> None:
    x = torch.zeros(validate.ROWS + 10, 3)
    x[validate.ROWS + 2, 1] = float("nan")
    x[validate.ROWS + 5, 0] = float("inf")
    with pytest.raises(DataError, match=rf"data\('train'\): 2 of .* inputs are NaN.*first is at \[{validate.ROWS + 2}, 1\]"):
        validate.check_samples(of(x), "train")


def test_unequal_numbers_of_samples_are_named() -> None:
    with pytest.raises(DataError, match=r"inputs\[0\] 4, inputs\[1\] 5, targets 4"):
        validate.check_samples(of((torch.zeros(4, 2), torch.zeros(5)), torch.zeros(4)), "search")
    with pytest.raises(DataError, match=r"inputs 4, targets\['boxes'\] 3"):
        validate.check_samples(of(torch.zeros(4, 2), {"boxes": torch.zeros(3, 4)}), "search")


def test_empty_split_and_foreign_targets_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\('holdout'\) has no samples.*None"):
        validate.check_samples(of(torch.zeros(0, 2)), "holdout")
    with pytest.raises(DataError, match=r"targets\[1\] is a str"):
        validate.check_samples(of(torch.zeros(1, 2), (torch.zeros(1), "cat")), "holdout")


def test_wrong_shape_says_what_the_model_says() -> None:
    with pytest.raises(DataError, match=r"refused inputs float32 \[2, 5\]; it says: .*shapes cannot be multiplied"):
        validate.check_model_runs(Net(lambda y, x: y), of(torch.zeros(2, 5)))


def test_float64_inputs_have_their_own_remedy() -> None:
    with pytest.raises(DataError, match="inputs are float64: give float32"):
        validate.check_model_runs(Net(lambda y, x: y), of(torch.zeros(2, 4, dtype=torch.float64)))


def test_arguments_that_forward_does_not_take_are_told_by_its_signature() -> None:
    with pytest.raises(DataError, match=r"it says: .*positional argument.*Its forward takes \(x: .*dict of tensors by name"):
        validate.check_model_runs(Net(lambda y, x: y), of((torch.zeros(2, 4), torch.zeros(2, 4))))


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_an_index_beyond_an_embedding_is_found_wherever_it_is(index: int) -> None:
    x = torch.arange(50).reshape(10, 5) % 5
    x[7, 2] = index
    says = rf"data\('search'\): the model refused samples 0, 1, 7 .*inputs from {min(index, 0)} to {max(index, 4)}\); it says: index out of range"
    with pytest.raises(DataError, match=says):
        validate.check_split_runs(nn.Embedding(5, 2), of(x), "search")


@pytest.mark.parametrize(("loss", "says"), [
    (lambda y, t: nn.functional.cross_entropy(y, t), None),
    (lambda y, t: None, None),
    (lambda y, t: nn.functional.cross_entropy(y, t, reduction="none"), r"returned a tensor of shape \(2,\)\. Return a scalar"),
    (lambda y, t: 0.5, "returned a float"),
    (lambda y, t: (y * 0).log().sum(), "is -inf for what the model gives"),
    (lambda y, t: y.detach().sum(), "does not lead back to the outputs"),
])  # fmt: skip
def test_a_loss_that_training_could_not_follow_is_refused(loss: Any, says: str | None) -> None:
    frozen, task, samples = Net(lambda y, x: y).requires_grad_(False), SimpleNamespace(loss=loss), of(torch.ones(2, 4), torch.tensor([0, 2]))
    with contextlib.nullcontext() if says is None else pytest.raises(DataError, match=says):
        validate.check_loss(frozen, task, samples)


def test_a_split_that_the_model_refuses_is_found_before_it_is_used() -> None:
    with pytest.raises(DataError, match=r"data\('train'\): the model refused samples 0, 1 \(inputs float32 \[2, 6\]\); it says: .*cannot be multiplied"):
        validate.check_split_runs(Net(lambda y, x: y), of(torch.zeros(9, 6)), "train")


@pytest.mark.parametrize(("then", "error", "says"), [
    (lambda y, x: "label", DataError, "a str without a tensor"),
    (lambda y, x: (y, y.mean()), DataError, r"Output 1 of the model has shape \(\) for 2 samples"),
    (lambda y, x: y * float("nan"), ModelError, "6 NaN among 6 values"),
    (lambda y, x: nn.functional.dropout(y), ModelError, "differs between two runs.*self.training"),
    (lambda y, x: (y, x.mul_(2)), ModelError, r"changes inputs in place.*x\.clone\(\)"),
])  # fmt: skip
def test_unusable_outputs_are_refused(then: Any, error: type[Exception], says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(error, match=says):
        validate.check_model_runs(Net(then), of(torch.ones(2, 4)))


def test_outputs_come_back_as_the_model_gives_them() -> None:
    outputs = validate.check_model_runs(Net(lambda y, x: {"logits": y, "mask": y.masked_fill(y > -9, -torch.inf)}), of(torch.ones(2, 4)))
    assert outputs["logits"].shape == (2, 3)


@pytest.mark.parametrize(("labels", "shape", "says"), [
    ([0, 3], (2, 3), r"run from 0 to 3, but the model has 3 outputs \(0 to 2\)"),
    ([-1, 2], (2, 3), "run from -1 to 2.*ignored"),
    ([[[0, 255]]], (1, 3, 1, 2), "run from 0 to 255"),
])  # fmt: skip
def test_labels_out_of_range_are_named(labels: Any, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        validate.check_labels(torch.zeros(shape), torch.tensor(labels), "search")


@pytest.mark.parametrize("targets", [None, torch.tensor([0.5, 99.0]), torch.tensor([[7, 8], [9, 9]]), {"a": torch.tensor([5, 5]), "b": torch.tensor([1, 1])}])
def test_targets_that_are_no_class_labels_are_left_to_the_metric(targets: Any) -> None:
    validate.check_labels(torch.zeros(2, 3), targets, "search")


def test_splits_of_different_inputs_are_refused() -> None:
    example = of({"ids": torch.zeros(2, 4, dtype=torch.long)})
    with pytest.raises(DataError, match=r"has inputs\['tokens'\], but the example has inputs\['ids'\]"):
        validate.check_same_kind(of({"tokens": torch.zeros(2, 4, dtype=torch.long)}), example, "train")
    with pytest.raises(DataError, match=r"is int32 \[1, 4\], but in the example int64 \[1, 4\]"):
        validate.check_same_kind(of({"ids": torch.zeros(2, 4, dtype=torch.int32)}), example, "train")
