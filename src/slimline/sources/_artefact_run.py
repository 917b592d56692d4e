"""Runs in the child process of ``_child.py``: an artefact in its runtime, by the target's own runner."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from slimline.errors import ModelError


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Nothing, if the file holds all that it needs and the runtime takes it, and the sample if there is one, within the limits of this process.

    Raises:
        ModelError: what is wrong with it.
    """
    import numpy as np

    path = Path(request["path"])
    if path.suffix == ".onnx":
        from slimline.sources._onnx_parse import check_whole

        check_whole(path.read_bytes())
    load = runpy.run_path(request["runner"])["load"]
    try:
        run = load(str(path), 1)
        if request["sample"]:
            run({name: np.load(file, allow_pickle=False) for name, file in request["sample"].items()})
    except Exception as error:
        raise ModelError(
            f"{request['title']} refuses it: {' '.join(str(error).split())[:400]}", hint="The file is damaged, or made for another version."
        ) from error
    return {}
