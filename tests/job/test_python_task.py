from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.onnx_files import onnx_file
from torch import nn

import slimline
from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError, UsageError
from slimline.job import _PythonTask


class Pairs:
    """Gives what a task file gives: a pair for ``search``, and nothing for the other splits."""

    asked: list[str]

    def __init__(self) -> None:
        self.asked = []

    def example(self) -> torch.Tensor:
        return torch.zeros(2, 3)

    def data(self, split: str) -> Any:
        self.asked.append(split)
        return (torch.arange(24.0).reshape(8, 3), [0, 1] * 4) if split == "search" else None

    def slices(self, split: str) -> list[int]:
        return list(range(8))

    def sample_weights(self, split: str) -> list[int]:
        return list(range(8))


def test_a_task_object_is_split_like_a_task_file() -> None:
    task: Any = Pairs()
    source = _PythonTask(nn.Linear(3, 2), task)
    search, holdout = source.data("search"), source.data("holdout")
    assert isinstance(search, Samples) and isinstance(holdout, Samples) and source.holdout_source == "from_search"
    assert sorted([*search.args[0][:, 0].tolist(), *holdout.args[0][:, 0].tolist()]) == [3.0 * i for i in range(8)]
    assert holdout.targets.tolist().count(0) == 2, "stratified"
    assert [int(x) * 3 for x in source.slices("holdout")[""]] == holdout.args[0][:, 0].tolist()
    weights = source.sample_weights("holdout")
    assert weights is not None and (3 * weights).tolist() == holdout.args[0][:, 0].tolist()
    assert source.data("train") is None and sorted(task.asked) == ["holdout", "search", "train"] and len(source.example()) == 2


def test_analyze_takes_what_compress_takes() -> None:
    task: Any = Pairs()
    model = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 2))
    with pytest.raises(ModelError, match="training mode"):
        slimline.analyze(model, task)
    said = slimline.analyze(model.eval(), task, methods=("weight_only",))
    assert "2,402 parameters" in said and "weight_only" in said and "static_int8" not in said


def test_measure_takes_what_compress_takes_and_finds_the_runtime(tmp_path: Path) -> None:
    """A pair of arrays from ``search``, without a metric of the task's own; sample i is [3i, 3i + 1, 3i + 2], and the file gives its first two numbers: class 1 always."""
    onnx_file(tmp_path / "model.onnx", torch.eye(3)[:, :2])
    task: Any = Pairs()
    found = slimline.measure(tmp_path, task, batch=4)
    assert (found["target"], found["metric"], found["split"], found["samples"], found["quality"]) == ("onnxruntime", "top1", "search", 8, 0.5)
    assert found["size_bytes"] == (tmp_path / "model.onnx").stat().st_size and found["latency_ms"]["batch"] == 4 and found["latency_ms"]["median"] > 0


@pytest.mark.parametrize(("given", "says"), [
    ({"artefact": "none.onnx"}, "The artefact none.onnx does not exist"),
    ({"artefact": 5}, "The artefact is a int, not a path"),
    ({"task": None}, "The task is a NoneType without example and data"),
    ({"task": Pairs}, "The task is the class Pairs"),
    ({"metric": "top7"}, "top7"),
    ({"target": "none"}, "none"),
    ({"threads": 0}, r"The budget cannot be used: Input should be greater than 0 at threads \(given: 0\)"),
])  # fmt: skip
def test_what_measure_cannot_do_is_told(given: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, DataError), match=says):
        slimline.measure(**({"artefact": "build", "task": Pairs()} | given))


@pytest.mark.parametrize(("given", "says"), [
    ({"model": None}, "The model is a NoneType"),
    ({"task": [1, 2]}, "The task is a list without example and data"),
    ({"budget": "1%"}, "The budget cannot be used: .*instance of Budget"),
    ({"methods": "low_rank"}, r"An argument cannot be used: Input should be a valid tuple at methods \(given: 'low_rank'\). See help"),
    ({"seed": "x"}, "at seed"),
    ({"time": "soon"}, "The time 'soon' is not understood"),
])  # fmt: skip
def test_what_compress_cannot_do_is_told(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        slimline.compress(**({"model": nn.Linear(3, 2).eval(), "task": Pairs(), "out": tmp_path / "out"} | given))
    assert not (tmp_path / "out").exists()
