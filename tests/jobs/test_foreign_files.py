"""Files of other tools, from the file to the report: ONNX ones of two makers, and what stays beside a model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from slimline.core.budget import Budget
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.result import Report
from slimline.job import compress_request
from slimline.sources.foreign import ForeignModel

DATA = """
import torch

COUNTS = {"train": 400, "search": 200, "holdout": 400}


def data(split):
    made = torch.Generator().manual_seed(list(COUNTS).index(split))
    return torch.randn(COUNTS[split], 1, 6, 6, generator=made), None
"""


def by_torch(path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    torch.onnx.export(model, (torch.zeros(2, 1, 6, 6),), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim.AUTO},), verbose=False)


def by_helper(path: Path) -> None:
    random = np.random.default_rng(0)
    stored = [numpy_helper.from_array(random.normal(0, 0.2, s).astype(np.float32), n) for n, s in (("a", (36, 64)), ("b", (64,)), ("c", (64, 4)))]
    nodes = [("Flatten", ["x"], ["f"]), ("MatMul", ["f", "a"], ["h"]), ("Add", ["h", "b"], ["i"]), ("Relu", ["i"], ["j"]), ("MatMul", ["j", "c"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 1, 6, 6]), ("y", ["N", 4]))]
    graph = helper.make_graph([helper.make_node(*n) for n in nodes], "g", ends[:1], ends[1:], initializer=stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.mark.parametrize("make", [by_torch, by_helper])
def test_onnx_file_is_compressed_to_a_smaller_one_that_gives_the_same(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "m.onnx")
    (tmp_path / "data.py").write_text(DATA)
    out = tmp_path / "build"
    given = (
        "--data",
        str(tmp_path / "data.py"),
        "--time",
        "12s",
        "--minimize",
        "size",
        "--max-drop",
        "0.05",
        "--methods",
        "weight_only,dynamic_int8,channel_prune",
    )
    command = [sys.executable, "-m", "slimline", "compress", str(tmp_path / "m.onnx"), *given, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (out / "report.json").is_file(), done.stderr
    report = Report.model_validate_json((out / "report.json").read_text())
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report.verdict] and report.verdict != "fail", done.stderr
    assert report.model == "m" and report.compressed.size_bytes < 0.7 * report.baseline.size_bytes
    assert report.drop is not None and report.drop.samples == 400
    x = np.random.default_rng(1).normal(size=(64, 1, 6, 6)).astype(np.float32)
    before, after = ((s := onnxruntime.InferenceSession(f)).run(None, {s.get_inputs()[0].name: x})[0] for f in (tmp_path / "m.onnx", out / "model.onnx"))
    assert float(((before - after) ** 2).sum() / (before**2).sum()) < 0.1


def test_tokenizer_stays_beside_the_artefact_and_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)

    def build(_: object) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

    beside = {"tokenizer.json": b"{}", "vocab.txt": b"a\nb\n"}
    source = ForeignModel.with_task(tmp_path / "hf", build, data=tmp_path / "data.py", beside=beside)
    out = tmp_path / "build"
    request = Request(budget=Budget(minimize="size", max_drop="0.05"), seconds=10, methods=("weight_only",), out=out, started=time.monotonic())
    compress_request(source, request, Silent())
    listed = json.loads((out / "manifest.json").read_text())["files"]
    for name, content in beside.items():
        assert (out / name).read_bytes() == content and listed[name] == hashlib.sha256(content).hexdigest()
    assert not list(out.glob(".*.part"))
    (out / "vocab.txt").write_text("the user's own by now")
    other = ForeignModel.with_task(tmp_path / "other", build, data=tmp_path / "data.py")
    compress_request(other, request.model_copy(update={"force": True, "started": time.monotonic()}), Silent())
    assert not (out / "tokenizer.json").exists() and (out / "vocab.txt").is_file()
