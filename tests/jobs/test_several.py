"""Two targets in one command, compared; and the finished plan of one lowered to the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimline.core.result import Comparison

TASK = """
import torch


def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()


def data(split):
    if split == "train":
        return None
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(len(split)))
    return x, torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(1))
"""


def slimline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("several")
    task, out = folder / "task.py", folder / "build"
    task.write_text(TASK)
    options = ("--target", "onnxruntime", "--target", "torch", "--time", "24s", "--minimize", "size", "--max-drop", "40%", "--out", str(out), "--json")
    return task, out, slimline("compress", str(task), *options)


def test_each_target_has_a_folder_and_one_report_compares_them(finished: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    _, out, done = finished
    found = Comparison.model_validate_json((out / "report.json").read_text())
    assert [r.target for r in found.runs] == ["onnxruntime", "torch"] and not found.stopped, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text()) and json.loads(done.stdout)["schema"] == 1
    for target, suffix in (("onnxruntime", ".onnx"), ("torch", ".pt2")):
        run = json.loads((out / target / "report.json").read_text())
        assert run["target"] == target and (out / target / f"model{suffix}").stat().st_size == run["compressed"]["size_bytes"]
        assert (out / target / "manifest.json").is_file()
        operations = json.loads((out / target / "operations.json").read_text())
        assert operations["target"] == target and any(o["weight"] for o in operations["operations"])
        for page in ("report.md", "report.html"):
            assert target in (out / page).read_text()
    gravest = {"fail": 3, "inconclusive": 4, "pass": 0}
    assert done.returncode in {gravest[r.verdict] for r in found.runs}


def test_what_does_not_depend_on_the_runtime_is_measured_once(finished: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    _, out, _ = finished
    assert list((out / ".slimline" / "cache").glob("*.safetensors"))
    assert not any((out / target / ".slimline" / "cache").exists() for target in ("onnxruntime", "torch"))


def test_a_finished_plan_is_lowered_to_another_runtime(finished: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    task, out, _ = finished
    done = slimline("export", str(out / "onnxruntime"), "--target", "torch", "--data", str(task), "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    where = out / "onnxruntime" / "torch"
    assert (where / "model.pt2").stat().st_size == figures["size_bytes"]
    assert figures == json.loads((where / "export.json").read_text())
    assert figures["agreement"]["cosine"] > 0.9999 and figures["samples"] == 64 and figures["quality"] is not None
    assert figures["layers"]["integer"] == 0  # what was in integers, PyTorch runs in float, and that is said
    operations = json.loads((out / "onnxruntime" / "operations.json").read_text())["operations"]
    integer = {o["weight"] for o in operations if o["weight"] and o["executes"] == "integer"}
    assert len(figures["changed"]) == len(integer)


def test_export_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    done = slimline("export", str(tmp_path), "--target", "torch")
    assert done.returncode == 2 and "no finished run" in done.stderr and "Traceback" not in done.stderr
