"""Converts and runs a SavedModel with TensorFlow and tf2onnx alone: executed by its path, in a Python that need not have Slimline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

OPSET = 17
SIGNATURE = "serving_default"


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the ONNX file ``request["out"]``."""
    import tf2onnx.convert

    sys.argv = ["convert", "--saved-model", request["folder"], "--output", request["out"], "--opset", str(OPSET), "--signature_def", SIGNATURE]
    tf2onnx.convert.main()
    return {}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Files with the outputs by name, of ``request["inputs"]``, files by name."""
    import numpy as np
    import tensorflow as tf

    call = tf.saved_model.load(request["folder"]).signatures[SIGNATURE]
    outputs = call(**{name: tf.constant(np.load(file)) for name, file in request["inputs"].items()})
    files = {}
    for place, (name, value) in enumerate(outputs.items()):
        files[name] = str(Path(request["out"], f"theirs_{place}.npy"))
        np.save(files[name], value.numpy())
    return {"outputs": files}


if __name__ == "__main__":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    asked = json.load(sys.stdin)
    answer = {"convert": convert, "run": run}[asked["do"]](asked)
    Path(asked["answer"]).write_text(json.dumps(answer))  # both libraries print what they like
