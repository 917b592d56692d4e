from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import slimline
from slimline.core.samples import Samples
from slimline.errors import ModelError
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
