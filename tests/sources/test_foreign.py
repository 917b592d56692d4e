"""Where a foreign model's example comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError
from slimline.sources.foreign import ForeignModel, random_samples

DECLARED = Samples.of(torch.zeros(2, 3))


def model(folder: Path, data: str | None) -> ForeignModel:
    file = folder / "data.py"
    if data is not None:
        file.write_text(data)
    return ForeignModel.with_task(folder / "model.onnx", lambda _: torch.nn.Linear(3, 1), data=None if data is None else file, declared=lambda: DECLARED)


def test_what_the_file_declares_is_taken_where_the_task_gives_nothing(tmp_path: Path) -> None:
    assert model(tmp_path, None).example() is DECLARED
    assert model(tmp_path, "def metric(outputs, targets):\n    return 0.0\n").example() is DECLARED


def test_an_example_that_is_at_fault_is_not_replaced_in_silence(tmp_path: Path) -> None:
    text = "import torch\n\nexample = torch.ones(2, 3)\n\ndef metric(outputs, targets):\n    return 0.0\n"
    with pytest.raises(ModelError, match="example is a Tensor, not a function"):
        model(tmp_path, text).example()
    with pytest.raises(DataError, match="ZeroDivisionError"):
        model(tmp_path, "def example():\n    return 1 / 0\n").example()


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16", "float32", "int64", "bool"])
def test_random_inputs_are_of_the_declared_dtype(kind: str) -> None:
    samples = random_samples([(("N", 3), kind)])
    assert samples is not None and samples.args[0].dtype == getattr(torch, kind)
