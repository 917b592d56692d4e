"""Runs in the child process of ``_child.py``: a Keras file in Keras itself, in its safe mode, on inputs from ``.npy`` files.

Keras sees a file only after it was parsed and lifted without Keras, so that its layers are Keras's own; and of an
archive only what was parsed: an archive is written anew, with nothing in it but configuration and weights.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimline.sources._keras_parse import ARCHIVE, CONFIG, METADATA, WEIGHTS

PARTS = ("activations", "constraints", "initializers", "layers", "models", "regularizers")
MODULES = ("keras", "builtins", *(f"keras.{p}" for p in PARTS), *(f"keras.src.{p}" for p in PARTS))


def unfit(config: Mapping[str, Any]) -> str:
    """Why Keras is not to open a model of this configuration, or its outputs are not those of float32; empty if it is."""
    waiting: list[Any] = [{k: v for k, v in config.items() if k != "compile_config"}]  # which Keras does not see
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            kind, module = str(one.get("class_name", "")), one.get("module")
            known = module is None or (isinstance(module, str) and (module in MODULES or module.startswith(tuple(f"keras.src.{p}." for p in PARTS))))
            if "class_name" in one and (kind in ("Lambda", "__lambda__") or ">" in str(one.get("registered_name") or "") or not known):
                return f"its configuration names {str(module)[:40]}.{kind[:40]}"
            if isinstance(one.get("input_layers"), dict) or isinstance(one.get("output_layers"), dict):
                return "its inputs or outputs are a dict, whose order Keras decides"
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if isinstance(one, str) and "float16" in one:
            return f"it computes in {one[:40]}"
    return ""


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Writes ``out_K.npy`` to the folder; ``outputs``: how many there are, or ``why`` Keras gives none."""
    folder, path = Path(request["folder"]), Path(request["path"])
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder)}
    import numpy as np

    inputs = [np.load(folder / f"in_{i}.npy", allow_pickle=False) for i in range(request["inputs"])]
    try:
        import keras

        model = keras.saving.load_model(_anew(path, folder, request["config"]), compile=False, safe_mode=True)
        outputs = keras.tree.flatten(model(inputs[0] if len(inputs) == 1 else inputs, training=False))
        for place, output in enumerate(outputs):
            np.save(folder / f"out_{place}.npy", keras.ops.convert_to_numpy(output))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - what Keras does not open cannot be compared with it, and is no fault of the file's
        return {"why": f"Keras does not open it: {' '.join(str(error).split())[:200] or type(error).__name__}"}
    return {"outputs": len(outputs)}


def _anew(path: Path, folder: Path, config: Mapping[str, Any]) -> Path:
    """The file for Keras to open."""
    with path.open("rb") as file:
        if file.read(4) != ARCHIVE:
            return path
    made = folder / "model.keras"
    with zipfile.ZipFile(path) as held, zipfile.ZipFile(made, "w") as archive:
        archive.writestr(CONFIG, json.dumps({k: v for k, v in config.items() if k != "compile_config"}))
        archive.writestr(METADATA, held.read(METADATA) if METADATA in held.namelist() else "{}")
        archive.writestr(WEIGHTS, held.read(WEIGHTS))
    return made
