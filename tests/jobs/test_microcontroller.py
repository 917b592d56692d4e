"""A keyword network from the command line to what a firmware build takes, in the micro interpreter."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
pytest.importorskip("tflite_micro", reason="the micro interpreter is not installed (pip install tflite-micro)")

from slimline.core.contracts import Artifact
from slimline.core.device import Device
from slimline.core.result import Report
from slimline.targets.litert_micro import LiteRTMicro

EXAMPLE = Path(__file__).parents[2] / "examples" / "keyword_spotting" / "task.py"
TASK = """
import functools, importlib.util, torch

spec = importlib.util.spec_from_file_location("keywords", {example!r})
keywords = importlib.util.module_from_spec(spec)
spec.loader.exec_module(keywords)
keywords.TRAIN, keywords.SEARCH, keywords.HOLDOUT = 480, 240, 240
data = keywords.data


def model():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return keywords.trained(keywords.SeparableNet(24, 2), *data("train"), 6).eval()
"""


def test_a_keyword_network_fits_a_cortex_m4_and_runs_in_the_micro_interpreter(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK.format(example=str(EXAMPLE)))
    out, device = tmp_path / "build", Device.load("cortex-m4-256k")
    command = [sys.executable, "-m", "slimline", "compress", str(tmp_path / "task.py"), "--device", device.name, "--time", "20s", "--max-drop", "10%"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=250, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    report = Report.model_validate_json((out / "report.json").read_text())
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report.verdict], done.stderr
    assert report.target == "litert-micro" and report.compressed is not None and report.agreement is not None

    artifact = LiteRTMicro().opened(Artifact.read("litert-micro", out / "model.tflite"))
    arena = sum(LiteRTMicro().measured_arena(artifact))
    assert artifact.size_bytes == report.compressed.size_bytes <= (device.flash_bytes or 0)
    assert arena <= (device.ram_bytes or 0) and report.compressed.memory_bytes == pytest.approx(arena, rel=0.05)
    header = (out / "model.h").read_text()
    assert f"model_arena_bytes = {arena} " in header and f"model_len = {artifact.size_bytes};" in header
    assert len(re.findall(r"0x[0-9a-f]{2}", header)) == artifact.size_bytes
    # Lowering rounds between layers in integers; words apart are few.
    assert report.agreement.top1 is not None and report.agreement.top1 >= 0.95
    operations = json.loads((out / "operations.json").read_text())["operations"]
    assert {o["executes"] for o in operations if o["weight"]} == {"integer"} and {o["type"] for o in operations} <= set(device.operations)
