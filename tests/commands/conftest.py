"""A finished run as ``slimline compress`` leaves it, without the minutes that it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slimline.core.result import ArtefactFile, Certificate, Cost, DecisionRecord, DropInterval, Point, Reference, Report, Schedule, SequenceStep, ratios
from slimline.core.trial import Agreement, Latency, Measurement
from slimline.report.sentence import sentence
from slimline.report.write import write_outputs


def measured(size: int, ms: float, quality: float | None) -> Measurement:
    return Measurement(
        size_bytes=size, download_bytes=size - 9, download_codec="zstd -19", memory_bytes=2 * size, parameters=size // 4, macs=10 * size, latency_ms=Latency(median=ms, p95=1.2 * ms, runs=100), quality=quality,
    )  # fmt: skip


def make_report(payload: bytes, **changes: Any) -> Report:
    base, result = measured(40_000, 0.2, 0.95), measured(len(payload), 0.1, 0.945)
    drop = DropInterval(observed=0.005, lower_95=-0.001, upper_95=0.009, allowed=0.01, samples=600)
    fields: dict[str, Any] = {
        "slimline": "0.1.0", "verdict": "pass", "model": "digits", "target": "onnxruntime", "device": "host", "metric": "top1", "minimize": "size", "seed": 3, "command": "slimline compress task.py",
        "schedule": Schedule(seconds=60, samples_loss=128, candidates=4, recovery_steps=200, finalists=2),
        "budget": {"max_drop": {"value": 0.01, "relative": False, "percent": True}, "minimize": "size", "batch": 1, "threads": 1},
        "baseline": base, "compressed": result, "ratio": ratios(base, result), "compression_ratio": result.size_bytes / base.size_bytes, "drop": drop,
        "certificate": Certificate(source="user", test="an exact test", sequence=(SequenceStep(plan="a" * 16, observed=0.005, upper_95=0.009, passed=True),)),
        "agreement": Agreement(top1=1.0, cosine=1.0, max_abs=0.01), "fidelity": Agreement(top1=0.98, cosine=0.99, max_abs=0.4),
        "references": {"plain int8": Reference(**measured(11_000, 0.12, 0.948).model_dump(), note="of 3 settings")},
        "pareto": (
            Point(plan="a" * 16, label="2 x static_int8", size_bytes=len(payload), latency_ms=0.1, memory_bytes=9_000, macs=90_000, quality=0.945, drop=0.005, chosen=True, on_front=True),
            Point(plan="b" * 16, label="1 x static_int8", size_bytes=20_000, latency_ms=0.15, memory_bytes=9_000, macs=90_000, quality=0.949, drop=0.001),
        ),
        "decisions": (
            DecisionRecord(site="a.weight", op="linear", method="static_int8", options={"bits": 8}, why="it loses nothing measurable", before="48 x 64", after="48 x 64", bits=8, cost=Cost(bytes_before=12_288, bytes_measured=3_200, ms_before=0.1, ms_measured=0.04)),
            DecisionRecord(site="b.weight", op="linear", method="keep", options={}, why="it is small", before="10 x 48", after="10 x 48", bits=32, cost=Cost(bytes_before=1_920, bytes_measured=1_920, ms_before=0.02, ms_measured=0.02)),
        ),
        "artefact": ArtefactFile(file="model.onnx", sha256=hashlib.sha256(payload).hexdigest()), "not_checked": ("latency on any machine but this one",),
        "environment": {"python": "3.11.7", "machine": "x86_64", "processor": "a processor", "cores": "2", "slimline": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0", "numpy": "2.4.6"},
    }  # fmt: skip
    fields |= changes
    fields.setdefault("sentence", sentence(fields["verdict"], fields["baseline"], fields["compressed"], fields["drop"]))
    return Report(**fields)


@pytest.fixture
def put_run() -> Callable[..., Path]:
    """``put_run(folder, payload=..., verdict=...)``: a finished run in ``folder``, its report with other fields."""

    def put(folder: Path, payload: bytes = b"a model " * 1000, **changes: Any) -> Path:
        (folder / ".slimline" / "cache").mkdir(parents=True, mode=0o700)
        write_outputs(folder, make_report(payload, **changes), {"model.onnx": payload, "plan.json": b"{}"})
        return folder

    return put


@pytest.fixture
def run(tmp_path: Path, put_run: Callable[..., Path]) -> Path:
    """A finished run that passed."""
    return put_run(tmp_path / "build")
