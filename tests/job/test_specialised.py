from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline import cli
from slimline.core.samples import Samples
from slimline.errors import DataError
from slimline.job.specialised import Specialised, specialised


class Task:
    """Four classes that are told by which of the first four features is largest; the model knows them all."""

    name = "four"
    holdout_source = "user"

    def __init__(self, targets: bool = True) -> None:
        self.targets = targets

    def example(self) -> Samples:
        return Samples.of(torch.zeros(2, 16))

    def data(self, split: str) -> Samples | None:
        x = torch.randn(400, 16, generator=torch.Generator().manual_seed(len(split)))
        return Samples.of(x, x[:, :4].argmax(1) if self.targets else None)

    def model(self) -> nn.Module:
        first, second = nn.Linear(16, 64), nn.Linear(64, 4)
        with torch.no_grad():
            for layer, size in ((first, 16), (second, 4)):
                layer.weight.copy_(torch.eye(layer.out_features, layer.in_features) if size == 16 else torch.eye(4, 64))
                layer.bias.fill_(4.0 if size == 16 else 0.0)
        return nn.Sequential(first, nn.ReLU(), second).eval()

    def metric(self, outputs: Any, targets: Any) -> torch.Tensor:
        return (outputs.argmax(1) == targets).float()

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def test_every_split_holds_the_classes_alone_and_the_others_are_elsewhere() -> None:
    task = Task()
    source = Specialised(task, (1, 3))
    for split in ("train", "search", "holdout"):
        mine, rest, whole = source.data(split), source.elsewhere(split), task.data(split)
        assert mine is not None and rest is not None and whole is not None
        assert set(mine.targets.tolist()) == {1, 3} and set(rest.targets.tolist()) == {0, 2}
        assert len(mine) + len(rest) == len(whole) == 400
        assert torch.equal(mine.args[0], whole.args[0][(whole.targets == 1) | (whole.targets == 3)])
    assert Specialised(task, (0, 1, 2, 3)).elsewhere("holdout") is None


class Sliced(Task):
    """Every second sample is from the night."""

    def slices(self, split: str) -> dict[str, tuple[str, ...]]:
        return {"light": ("day", "night") * 200}


def test_samples_of_the_classes_keep_their_indices_and_slices() -> None:
    source = Specialised(Sliced(), (1, 3))
    whole, mine, origin = Task().data("holdout"), source.data("holdout"), source.origin("holdout")
    assert whole is not None and mine is not None and origin.index is not None and origin.split == "holdout"
    assert torch.equal(whole.args[0][origin.index], mine.args[0])
    assert source.slices("holdout") == {"light": tuple("night" if i % 2 else "day" for i in origin.index.tolist())}
    assert Specialised(Task(), (1, 3)).slices("holdout") == {}


def test_a_class_without_samples_and_targets_that_are_no_labels_are_named() -> None:
    with pytest.raises(DataError, match=r"No search sample is of class 9.*There are 0, 1, 2, 3"):
        Specialised(Task(), (1, 9)).data("search")
    with pytest.raises(DataError, match="needs labels"):
        Specialised(Task(targets=False), (1,)).data("search")


class Weighed(Task):
    """The device sees class 0 in every second sample, class 3 never, and the other two alike."""

    has_sample_weights = True
    seen = torch.tensor([2.0, 1.0, 1.0, 0.0])

    def sample_weights(self, split: str) -> torch.Tensor:
        samples = self.data(split)
        assert samples is not None
        return self.seen[samples.targets].double()


def test_samples_stay_as_often_as_they_weigh_and_the_same_ones_every_time() -> None:
    source = specialised(Weighed(), ())
    assert isinstance(source, Specialised) and specialised(Task(), ()).__class__ is Task
    whole, mine, rest = Weighed().data("holdout"), source.data("holdout"), source.elsewhere("holdout")
    assert whole is not None and mine is not None and rest is not None and len(mine) + len(rest) == len(whole)
    before, after = (torch.bincount(s.targets, minlength=4) for s in (whole, mine))
    assert after[0] == before[0] and after[3] == 0
    assert all(abs(int(after[k]) - int(before[k]) / 2) < 3 * (int(before[k]) / 4) ** 0.5 for k in (1, 2))
    again = specialised(Weighed(), ()).data("holdout")
    assert again is not None and torch.equal(again.args[0], mine.args[0])
    both = specialised(Weighed(), (1, 3))
    with pytest.raises(DataError, match="leaves none of 400 samples"):
        specialised(Weighed(), (3,)).data("holdout")
    found = both.data("holdout")
    assert found is not None and set(found.targets.tolist()) == {1} and len(found) == after[1]


def test_what_is_wrong_with_the_holdout_is_told_before_the_search() -> None:
    with pytest.raises(DataError, match="No holdout sample is of class 9"):
        Specialised(Task(), (1, 9)).slices("holdout")


def test_a_weighted_plan_says_whom_it_is_for() -> None:
    from slimline.core.result import Elsewhere
    from slimline.report.sentence import only_text

    weighted = Elsewhere(classes=(), weighted=True, samples=120, before=0.9, after=0.8, drop=0.1, lower_95=0.05, upper_95=0.16)
    assert only_text(weighted, 0.9) == (
        "This is for samples as sample_weights weighs them; on the samples left out 10.00 points are lost (120 samples, with 95 % confidence at most 16.00 points lost)."
    )
    both = only_text(weighted.model_copy(update={"classes": (1, 5)}), 0.9)
    assert both.startswith("This is for classes 1 and 5 alone, samples as sample_weights weighs them; ")


@pytest.mark.parametrize("text", ["a", "1,b", "-1", "", ","])
def test_what_are_no_labels_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", "task.py", "--classes", text]) == 2
    assert "no labels" in capsys.readouterr().err
