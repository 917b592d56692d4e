"""Runs in the child process of ``_child.py``: an ONNX file in ONNX Runtime, on inputs from ``.npy`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimline.errors import ModelError


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Writes ``out_K.npy`` to the folder; how many there are.

    Raises:
        ModelError: the runtime refuses the file or the inputs.
    """
    import numpy as np

    folder = Path(request["folder"])
    inputs = {name: np.load(file, allow_pickle=False) for name, file in request["inputs"].items()}
    count, batch = len(next(iter(inputs.values()))), request["batch"]
    parts: list[Any] = []
    try:
        one = session(request["path"])
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            kept = min(batch, count - start)
            parts.append([np.asarray(o)[:kept] if np.ndim(o) else np.asarray(o) for o in one.run(request["outputs"], {n: a[rows] for n, a in inputs.items()})])
    except Exception as error:
        said = " ".join(str(error).split())[:400]
        raise ModelError(f"ONNX Runtime refuses it: {said}", hint="Export it again, for an opset that it knows.") from error
    for place, column in enumerate(zip(*parts, strict=True)):
        np.save(folder / f"out_{place}.npy", np.concatenate(column) if column[0].ndim else column[0])
    return {"outputs": len(parts[0])}


def session(file: str) -> Any:
    """The file in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
