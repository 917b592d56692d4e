from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from slimline.commands._request import targets_of
from slimline.core.samples import Samples
from slimline.errors import LoweringError, TargetNotInstalled, UsageError
from slimline.measure.fresh import run_fresh
from slimline.targets.onnxruntime import OnnxRuntime


def write(path: Path) -> Path:
    """A file that adds its inputs ``a`` and ``b`` and gives the sum and its negative."""
    kind = TensorProto.FLOAT
    values = [helper.make_tensor_value_info(n, kind, ["batch", 3]) for n in ("a", "b", "sum", "negative")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Neg", ["sum"], ["negative"])]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:2], values[2:]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def test_outputs_come_from_the_file_in_another_process_in_order_and_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "model.onnx")
    a, b = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.ones(7, 3)
    outputs, rss = run_fresh(OnnxRuntime(), file, ("a", "b"), Samples((a, b), {}), threads=1, batch=3)
    assert torch.equal(outputs[0], a + b)
    assert torch.equal(outputs[1], -(a + b))
    assert 10_000_000 < rss < 2_000_000_000  # a Python process with the runtime, without torch


def test_keyword_inputs_go_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "model.onnx")
    a, b = torch.zeros(2, 3), torch.ones(2, 3)
    outputs, _ = run_fresh(OnnxRuntime(), file, ("a", "b"), Samples((), {"b": b, "a": a}), threads=1)
    assert torch.equal(outputs[0], b)


def test_a_file_that_the_runtime_refuses_is_a_typed_error_with_its_words(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"nonsense")
    with pytest.raises(LoweringError, match=r"broken\.onnx failed in a fresh process"):
        run_fresh(OnnxRuntime(), file, ("a",), Samples.of(torch.zeros(1, 3)), threads=1)


def test_another_python_can_check_the_file_and_one_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = write(tmp_path / "model.onnx"), tmp_path / "asked"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch {asked}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("SLIMLINE_PYTHON_ONNXRUNTIME", str(python))
    outputs, _ = run_fresh(OnnxRuntime(), file, ("a", "b"), Samples((torch.ones(2, 3), torch.ones(2, 3)), {}), threads=1)
    assert asked.exists() and torch.equal(outputs[0], torch.full((2, 3), 2.0))
    monkeypatch.setenv("SLIMLINE_PYTHON_ONNXRUNTIME", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"SLIMLINE_PYTHON_ONNXRUNTIME=.*nowhere cannot be started"):
        run_fresh(OnnxRuntime(), file, ("a",), Samples.of(torch.zeros(1, 3)), threads=1)


def test_a_runtime_that_only_the_other_python_has_is_still_to_be_installed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "installed", classmethod(lambda cls: False))
    monkeypatch.setenv("SLIMLINE_PYTHON_ONNXRUNTIME", sys.executable)
    with pytest.raises(TargetNotInstalled) as error:
        targets_of(("onnxruntime",))
    assert "pip install onnxruntime" in error.value.hint and "SLIMLINE_PYTHON_ONNXRUNTIME names the Python that checks the finished file" in error.value.hint
