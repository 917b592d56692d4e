"""``benchmarks/targets.py``: the table of one model in every runtime, and what is told where there is no row."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.reports import report

from slimline.core.contracts import Operation
from slimline.model.program import Program
from slimline.sources.task_file import TaskFile
from slimline.targets.onnxruntime import OnnxRuntime
from slimline.targets.torch import Torch

ROOT = Path(__file__).parents[2]
DIGITS = """
import torch
from sklearn.datasets import load_digits

images, labels = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
images = images.float() / 16


def model():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()
    with torch.no_grad():  # the last layer in closed form
        features = net[:2](images[:1000])
        wanted = torch.nn.functional.one_hot(labels[:1000]).float()
        net[2].weight.copy_(torch.linalg.lstsq(features.T @ features + torch.eye(128), features.T @ wanted).solution.T)
        net[2].bias.zero_()
    return net


def data(split):
    part = {"train": slice(1000), "search": slice(1000, 1300), "holdout": slice(1300, None)}[split]
    return images[part], labels[part]
"""


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("targets_benchmark", ROOT / "benchmarks" / "targets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_have_rows_for_what_is_built_and_a_reason_for_what_is_not(
    targets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(Torch, "installed", lambda: False)
    folder = tmp_path / "builds" / "onnxruntime"
    folder.mkdir(parents=True)
    source = tmp_path / "digits.py"
    source.write_text(DIGITS)
    task = TaskFile.load(str(source))
    OnnxRuntime().lower(Program.export(task.model(), task.example()), task.example()).write(folder / "model.onnx")
    (folder / "report.json").write_text(report(target="onnxruntime").model_dump_json())
    file = tmp_path / "found.json"
    arguments = [str(source), "--builds", str(tmp_path / "builds"), "--json", str(file), "--seconds", "0.05", "--quality-seconds", "0.02"]

    targets.main([*arguments, "--target", "onnxruntime", "--target", "torch"])
    found, missing = json.loads(file.read_text())["targets"]
    rows = {r["row"]: r for r in found["rows"]}
    assert list(rows) == ["float32", "default int8", "compressed"]
    # the "compressed" model is the float one: neither smaller than it, nor than int8
    assert rows["compressed"]["size_bytes"] == rows["float32"]["size_bytes"] > rows["default int8"]["size_bytes"]
    assert rows["compressed"]["quality"] == rows["float32"]["quality"] > 0.85 and rows["float32"]["samples"] >= 50
    assert set(rows["float32"]["latency_ms"]) == {"1", "2"} and "QDQ, MinMax" in rows["default int8"]["note"]
    assert "not smaller than float32 (1.00 of its bytes)" in found["verdict"]
    assert "2 of 2 layers run in float" in found["verdict"] and "nothing was trained" in found["verdict"]
    assert "not installed" in missing["stopped"] and "pip install" in missing["stopped"]
    assert "| torch | | | | | | PyTorch is not installed." in capsys.readouterr().out

    monkeypatch.setattr(targets, "measured", lambda *_: pytest.fail("it was measured before"))
    targets.main([*arguments, "--target", "onnxruntime"])
    assert json.loads(file.read_text())["targets"] == [found, missing]


def row(name: str, size: int, ms: tuple[float, ...], quality: float = 0.9) -> dict[str, Any]:
    return {"row": name, "size_bytes": size, "latency_ms": dict(zip("12", ms, strict=False)), "quality": quality}


def test_the_verdict_names_every_miss_and_what_is_known_about_it(targets: ModuleType) -> None:
    rows = [row("float32", 100, (1.0, 0.6)), row("default int8", 30, (0.5, 0.3), 0.8), row("compressed", 20, (0.6, 0.2))]
    told = report(cheaper=3, drop={"observed": 0, "lower_95": 0, "upper_95": 0, "allowed": 0.01, "samples": 9})
    facts = list(targets.known(OnnxRuntime(), [Operation("a", "Conv", "float", "w"), Operation("b", "QLinearConv", "integer", "v")], told, rows))
    assert targets.verdict(rows, facts) == (
        "not faster than default int8 at 1 thread (1.20 of its time). Known: 1 of 2 layers run in float; default int8 loses 0.1000 where 0.01 is allowed; "
        "3 measured candidates were better in latency and lost more than is allowed; nothing was trained"
    )
    assert next(targets.known(Torch(), [], told, rows)) == "torch executes no layer in integers"
    rows[2] = row("compressed", 20, (0.4,))
    assert targets.verdict(rows, facts) == "smaller and faster than both"
    alone = [rows[0], {"row": "default int8", "note": "none"}, rows[2]]
    assert targets.verdict(alone, facts) == "smaller and faster than float32, which is all there is to compare with"
