"""Runs an ONNX file and knows nothing of how it was made. Executed by its path, in a process without Slimline."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxruntime

PROVIDERS = {"cuda": ["CUDAExecutionProvider"], "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"]}


def load(file: str, threads: int) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """The function from inputs by name to outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    providers = PROVIDERS.get(os.environ.get("SLIMLINE_ONNXRUNTIME_PROVIDER", ""), [])
    session = onnxruntime.InferenceSession(file, options, providers=[*providers, "CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))
