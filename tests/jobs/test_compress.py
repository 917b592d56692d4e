"""The whole job on a small model: what it writes, what it refuses, and that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import slimline
from slimline.core.result import Report

TASK = """
import torch
from sklearn.datasets import load_digits
from torch import nn

SIZES = {"train": 900, "search": 297, "holdout": 600}


def data(split):
    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    y = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    index = dict(zip(SIZES, order.split([*SIZES.values()])))[split]
    return x[index], y[index]


def model():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 10))
        x, y = data("train")
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(15):
            for i in torch.randperm(len(y)).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[i]), y[i]).backward()
                optimizer.step()
    return net.eval()
"""
NO_DATA = """
import torch


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()


def example():
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
"""


def run(task: Path, out: Path, *options: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimline", "compress", str(task), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="module")
def finished(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("run") / "build"
    return out, run(task, out, "--max-drop", "3%", "--minimize", "size", "--time", "40s", "--json")


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_the_exit_code_is_the_verdict(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report_of(out)["verdict"]], done.stderr


def test_json_alone_is_on_standard_output(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    assert json.loads(done.stdout)["artefact"] == report_of(out)["artefact"]


def test_the_report_is_what_the_contract_says(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    report = report_of(out)
    assert Report.model_validate(report).verdict == report["verdict"]
    assert report["schema"] == 1
    for side in ("baseline", "compressed"):
        assert {"size_bytes", "download_bytes", "download_codec", "memory_bytes", "rss_bytes", "parameters", "macs", "latency_ms", "quality"} <= set(
            report[side]
        )
    assert report["compression_ratio"] == pytest.approx(report["compressed"]["size_bytes"] / report["baseline"]["size_bytes"])
    assert report["drop"]["samples"] == 600 and report["certificate"]["source"] == "user"
    assert report["drop"]["observed"] == pytest.approx(report["baseline"]["quality"] - report["compressed"]["quality"])
    assert report["decisions"] and report["pareto"] and report["references"]


def test_what_was_lost_up_close_and_what_more_would_buy_is_in_the_report(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = Report.model_validate(report_of(finished[0]))
    seen, drop = report.close_up, report.drop
    assert seen is not None and drop is not None and (seen.samples, seen.split) == (600, "holdout")
    assert (len(seen.lost) - len(seen.won)) / 600 == pytest.approx(drop.observed, abs=1e-6)
    assert len(seen.classes) == 10 and sum(g.samples for g in seen.classes) == 600 and seen.calibration is not None
    assert seen.disturbed or any("blur" in n for n in report.not_checked)
    assert (report.prices[-1:] and report.prices[-1].quantity == "loss") or any("solve again" in n for n in report.not_checked)
    assert any(d.alternatives for d in report.decisions)


def test_every_file_is_the_one_in_the_manifest(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    manifest = json.loads((out / "manifest.json").read_text())
    assert {"model.onnx", "plan.json", "plan.safetensors", "report.json", "report.md", "report.html"} <= set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert not list(out.glob("*.part")) and not list(out.glob(".*.part"))


def test_the_artefact_is_smaller_and_any_batch_runs(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    import onnxruntime

    out, _ = finished
    report = report_of(out)
    assert (out / "model.onnx").stat().st_size == report["compressed"]["size_bytes"] < report["baseline"]["size_bytes"] / 3
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": torch.zeros(7, 1, 8, 8).numpy()})[0].shape == (7, 10)
    assert not onnx.load(str(out / "model.onnx")).graph.value_info


def test_the_compressed_model_trains_again(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    import onnxruntime

    out, _ = finished
    module = slimline.load(out)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = module(x)
    outputs.sum().backward()
    assert any(p.grad is not None for p in module.parameters())
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    similar = torch.nn.functional.cosine_similarity(outputs.detach(), torch.from_numpy(session.run(None, {"input": x.numpy()})[0]))
    assert similar.min() > 0.95  # the activations' rounding is all that is between them


def test_a_folder_that_is_in_use_is_refused(finished: tuple[Path, subprocess.CompletedProcess[str]], task: Path) -> None:
    out, _ = finished
    done = run(task, out, "--time", "20s")
    assert done.returncode == 2 and "--resume" in done.stderr and "Traceback" not in done.stderr


def test_explain_names_every_site(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    said = subprocess.run([sys.executable, "-m", "slimline", "explain", str(out)], capture_output=True, text=True, check=True).stdout
    assert all(d["site"] in said for d in report_of(out)["decisions"])


def test_a_size_that_nothing_reaches_is_refused_before_the_search(task: Path, tmp_path: Path) -> None:
    done = run(task, tmp_path / "out", "--max-size", "100B", "--time", "30s")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()  # so that the mended command is not told that it is not empty


def test_without_data_the_verdict_is_inconclusive(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_text(NO_DATA)
    done = run(path, tmp_path / "out", "--time", "20s", "--minimize", "size")
    assert done.returncode == 4, done.stderr
    report = report_of(tmp_path / "out")
    assert report["drop"] is None and report["certificate"] is None and report["not_checked"]
    assert report["compressed"]["size_bytes"] < report["baseline"]["size_bytes"]


def test_a_killed_run_resumes_with_the_same_schedule_and_repeats_no_trial(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--max-drop", "3%", "--minimize", "size", "--time", "60s")
    process = subprocess.Popen(
        [sys.executable, "-m", "slimline", "compress", str(task), "--out", str(out), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = out / ".slimline" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count('"kind":"trial"') >= 2):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [line for line in journal.read_text().splitlines() if '"kind":"trial"' in line or '"kind":"schedule"' in line]
    done = run(task, out, *options, "--resume")
    assert done.returncode in (0, 3, 4), done.stderr
    after = [line for line in journal.read_text().splitlines() if '"kind":"trial"' in line or '"kind":"schedule"' in line]
    assert after[: len(before)] == before
    plans = [json.dumps(json.loads(line[9:])["data"]["plan"], sort_keys=True) for line in after if '"kind":"trial"' in line]
    assert len(plans) == len(set(plans))
