"""The example repository: retrained weights take the lock's plan, and the check is green."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import slimline
from slimline.core.trial import Latency, Measurement
from slimline.project.lock import Lock, Locked

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci"
NAME = "points/onnxruntime/small"
DECISIONS = [
    {"site": "0.weight", "method": {"name": "static_int8", "bits": 8}},
    {"site": "2.weight", "method": {"name": "weight_only", "bits": 4}},
    {"site": "4.weight", "method": {"name": "static_int8", "bits": 8}},
]
MARK = "import sys; from task import model; from slimline.store.cache import fingerprint; print(fingerprint(model(), {}).architecture)"


def test_a_retrained_model_takes_the_locks_plan_and_passes(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(EXAMPLE, folder)
    environment = {**os.environ, "PYTHONPATH": str(Path(slimline.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)

    assert run("train.py", "3").returncode == 0
    architecture = run("-c", MARK).stdout.strip()
    # Last week's lock; its figures are of an artefact that is not here, so they are only what is compared with first.
    measured = Measurement(
        size_bytes=20_000, download_bytes=20_000, download_codec="zstd -19", memory_bytes=40_000, parameters=10_026, macs=9_856,
        latency_ms=Latency(median=1.0, p95=1.0, runs=1), quality=0.9,
    )  # fmt: skip
    plan = {"schema_version": 1, "model": {"architecture": architecture, "weights": "last week's", "data": ""}, "decisions": DECISIONS, "seed": 0}
    Lock(artefacts={NAME: Locked(files={"model.onnx": "0"}, inputs="0", verdict="pass", metric="top1", measured=measured, plan=plan)}).write(
        folder / "slimline.lock"
    )
    done = run("-m", "slimline", "run", "--replay", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((folder / "build" / NAME / "plan.json").read_text())
    assert [(d["site"], d["method"]["name"], d["method"]["bits"]) for d in made["decisions"]] == [
        (d["site"], d["method"]["name"], d["method"]["bits"])  # type: ignore[index]
        for d in DECISIONS
    ]
    assert made["model"]["weights"] != "last week's"
    report = json.loads((folder / "build" / NAME / "report.json").read_text())
    assert report["certificate"]["source"] == "user" and len({p["plan"] for p in report["pareto"]}) == 1
    assert run("-m", "slimline", "accept").returncode == 0
    done = run("-m", "slimline", "check")
    assert done.returncode == 0 and "byte for byte" in done.stdout and "pass: all 3 checks pass" in done.stdout, done.stdout + done.stderr
