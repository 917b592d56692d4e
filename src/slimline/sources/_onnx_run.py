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
    inputs = {n: np.load(folder / f"in_{i}.npy", allow_pickle=False) for i, n in enumerate(request["names"])}
    count, batch = len(next(iter(inputs.values()))), request["batch"]
    parts: list[Any] = []
    try:
        session = _session(request["path"])
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            kept = min(batch, count - start)
            parts.append([np.asarray(o)[:kept] if np.ndim(o) else np.asarray(o) for o in session.run(None, {n: a[rows] for n, a in inputs.items()})])
    except Exception as error:
        raise _refused(error) from error
    for place, column in enumerate(zip(*parts, strict=True)):
        np.save(folder / f"out_{place}.npy", np.concatenate(column) if column[0].ndim else column[0])
    return {"outputs": len(parts[0])}


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Nothing, if the file holds all that it needs and the runtime takes it within the limits of this process.

    Raises:
        ModelError: what is wrong with it.
    """
    from slimline.sources._onnx_parse import check_whole

    content = Path(request["path"]).read_bytes()
    check_whole(content)
    try:
        _session(content)
    except Exception as error:
        raise _refused(error) from error
    return {}


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _refused(error: Exception) -> ModelError:
    return ModelError(f"ONNX Runtime refuses it: {' '.join(str(error).split())[:400]}", hint="Export it again, for an opset that it knows.")
