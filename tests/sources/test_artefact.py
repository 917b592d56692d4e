"""Artefacts of others: what becomes of a runtime that opens one stays in a child process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slimline.errors import ModelError, UsageError
from slimline.job import measure
from slimline.sources.artefact import check_artefact


@pytest.mark.parametrize(("opens", "runs", "says"), [
    ("os.abort()", "None", r"crashed \(SIGABRT\)"),
    ("1 / 0", "None", "runtime refuses it: division by zero"),
    ("None", "os.abort()", r"crashed \(SIGABRT\)"),
    ("None", "given['x'].reshape(4)", "runtime refuses it: cannot reshape array of size 3"),
])  # fmt: skip
def test_runtime_that_fails_is_a_typed_error(tmp_path: Path, opens: str, runs: str, says: str) -> None:
    (tmp_path / "runner.py").write_text(f"import os\n\ndef load(file, threads):\n    {opens}\n    return lambda given: {runs}\n")
    (tmp_path / "model.tflite").write_bytes(b"x")
    if opens == "None":
        check_artefact(tmp_path / "model.tflite", tmp_path / "runner.py", "runtime")
    with pytest.raises(ModelError, match=says):
        check_artefact(tmp_path / "model.tflite", tmp_path / "runner.py", "runtime", {"x": torch.zeros(1, 3)})


def test_program_is_measured_only_if_trusted(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"x")
    task: Any = SimpleNamespace(example=print, data=print)  # neither is reached
    with pytest.raises(UsageError, match="opening it can run code"):
        measure(tmp_path, task, target="torch")
    with pytest.raises(ModelError, match="torch refuses it"):
        measure(tmp_path, task, target="torch", trusted=True)
