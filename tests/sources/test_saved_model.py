"""SavedModel folders: what becomes of one where TensorFlow's Python answers, and where it does not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimline.errors import ModelError, UsageError
from slimline.sources.dispatch import open_source

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
TENSORFLOW = """
import json, sys
import numpy as np
asked = json.load(sys.stdin)
answer = {{}}
if asked["do"] == "convert":
    open(asked["out"], "wb").write(open({file!r}, "rb").read())
else:
    {run}
open(asked["answer"], "w").write(json.dumps(answer))
"""
RIGHT = 'np.save(asked["out"] + "/y.npy", np.load(asked["inputs"]["x"]) @ np.arange(12, dtype=np.float32).reshape(4, 3) / 10); answer = {"outputs": {"y": asked["out"] + "/y.npy"}}'


def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> Path:
    """A SavedModel in which nothing lies, and a Python that says of it what TensorFlow would."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])], [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "made.onnx")
    (tmp_path / "fake.py").write_text(TENSORFLOW.format(file=str(tmp_path / "made.onnx"), run=run))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'fake.py'}\n")
    python.chmod(0o755)
    monkeypatch.setenv("SLIMLINE_PYTHON_TENSORFLOW", str(python))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"")
    return tmp_path / "net"


def test_folder_is_opened_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="opening it can run code that it holds") as caught:
        open_source(str(folder(tmp_path, monkeypatch, RIGHT)))
    assert "--trust" in caught.value.hint


@pytest.mark.parametrize(("run", "note"), [(RIGHT, []), ("sys.exit('no signature')", ["what net became: not compared with TensorFlow"])])
def test_converted_folder_is_compared_with_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, note: list[str]) -> None:
    source = open_source(str(folder(tmp_path, monkeypatch, run)), trusted=True)
    assert source.name == "net" and [type(m).__name__ for m in source.model().children()] == ["Linear"]
    assert [n[: len(w)] for n, w in zip(source.notes, note, strict=True)] == note  # type: ignore[attr-defined]


def test_module_that_differs_from_tensorflow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="its output y differs from TensorFlow's by 1"):
        open_source(str(folder(tmp_path, monkeypatch, RIGHT.replace("/ 10)", "/ 10 + 1)"))), trusted=True).model()


def test_python_without_tensorflow_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, monkeypatch, RIGHT)
    monkeypatch.setenv("SLIMLINE_PYTHON_TENSORFLOW", str(tmp_path / "none"))
    with pytest.raises(ModelError, match="did not answer"):
        open_source(str(path), trusted=True)
    (tmp_path / "fake.py").write_text("import no_tf2onnx")
    monkeypatch.setenv("SLIMLINE_PYTHON_TENSORFLOW", str(tmp_path / "python"))
    with pytest.raises(ModelError, match="No module named 'no_tf2onnx'") as caught:
        open_source(str(path), trusted=True)
    assert "pip install tensorflow-cpu tf2onnx" in caught.value.hint
