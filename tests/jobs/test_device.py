"""``compress --device`` from the command line: what it does not execute, its limits, and its latencies, which are estimates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimline.core.device import Device, LatencyTable, Rate
from slimline.core.result import Report

TASK = """
import torch


def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8){last}).eval()


def data(split):
    if split == "train":
        return None
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(len(split)))
    return x, torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(1))
"""
BOARD = Device(
    name="board", title="A board", target="onnxruntime", targets=("onnxruntime",), cores=1, isa="none", size_bytes=9_000, memory_bytes=60_000, minimize="size",
    operations=(), sources={"cores": "made up"},
)  # fmt: skip


def compress(folder: Path, device: Device, last: str = "") -> tuple[Path, subprocess.CompletedProcess[str]]:
    (folder / "task.py").write_text(TASK.format(last=last))
    (folder / "board.toml").write_text(device.toml())
    out = folder / "build"
    arguments = ("compress", str(folder / "task.py"), "--device", str(folder / "board.toml"), "--time", "20s", "--max-drop", "40%", "--out", str(out))
    command = [sys.executable, "-m", "slimline", *arguments]
    return out, subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_what_a_device_does_not_execute_is_refused_by_name_before_the_search(tmp_path: Path) -> None:
    out, done = compress(tmp_path, BOARD.model_copy(update={"operations": ("Gemm", "FusedGemm", "MatMul")}), ", torch.nn.Softmax(1)")
    assert done.returncode == 2 and "board does not execute Softmax" in done.stderr and "It executes Gemm, FusedGemm, MatMul" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (out / "report.json").exists()
    assert not [line for f in (out / ".slimline").rglob("*.jsonl") for line in f.read_text().splitlines() if '"trial"' in line]


def test_a_device_gives_the_limits_that_were_not_asked_for(tmp_path: Path) -> None:
    out, done = compress(tmp_path, BOARD)
    report = Report.model_validate_json((out / "report.json").read_text())
    assert (report.budget["size_bytes"], report.budget["memory_bytes"], report.minimize) == (9_000, 60_000, "size"), done.stderr
    assert report.compressed is not None and report.compressed.size_bytes <= 9_000 < report.baseline.size_bytes
    assert not report.compressed.latency_ms.estimated and any("latency on board: the figures are of this machine" in n for n in report.not_checked)


def test_latencies_from_a_table_are_called_estimates(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    rates = tuple(Rate(operation=o, executes=e, call_us=50, nanoseconds=10) for o in ("FULLY_CONNECTED", "ADD") for e in ("integer", "float"))
    device = BOARD.model_copy(update={"target": "litert", "targets": ("litert",), "latency": LatencyTable(source="made up", rates=rates)})
    out, done = compress(tmp_path, device)
    report = Report.model_validate_json((out / "report.json").read_text())
    assert report.baseline.latency_ms.estimated and report.compressed is not None and report.compressed.latency_ms.estimated, done.stderr
    assert "ms (estimate)" in report.sentence and any("every figure is an estimate from its table (made up)" in n for n in report.not_checked)
    for page in ("report.md", "report.html"):
        text = (out / page).read_text()
        assert "latency (estimate)" in text and "nothing ran on it" in text and "interleaved" not in text
    assert all(o["backend"].endswith("estimate") for o in json.loads((out / "operations.json").read_text())["operations"])
