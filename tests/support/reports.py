"""The smallest report that there can be."""

from __future__ import annotations

from typing import Any

from slimline.core.result import Report, Schedule
from slimline.core.trial import Latency, Measurement


def report(**changed: Any) -> Report:
    measured = Measurement(
        size_bytes=1000,
        download_bytes=900,
        download_codec="zstd -19",
        memory_bytes=2000,
        parameters=100,
        macs=100,
        latency_ms=Latency(median=0.1, p95=0.2, runs=20),
    )
    values: dict[str, Any] = {
        "slimline": "0", "verdict": "pass", "sentence": "It is smaller.", "model": "task", "target": "onnxruntime", "device": "host", "metric": "top1", "minimize": "latency",
        "seed": 0, "command": "", "schedule": Schedule(seconds=1, samples_loss=1, candidates=1, recovery_steps=0, finalists=1), "budget": {}, "baseline": measured, "compressed": measured,
        "drop": None, "certificate": None, "agreement": None, "fidelity": None, "artefact": None,
    }  # fmt: skip
    return Report(**values | changed)
