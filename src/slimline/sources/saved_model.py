"""A TensorFlow SavedModel by way of tf2onnx: a program, and therefore opened only where it is trusted."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.interpreter import interpreter, variable
from slimline.core.samples import Samples
from slimline.errors import ModelError, UsageError
from slimline.sources.foreign import ForeignModel, check_outputs
from slimline.sources.onnx import OnnxModel, open_onnx, stored

TENSORFLOW = "tensorflow"
RUNNER = Path(__file__).with_name("_saved_model_run.py")
SECONDS = 600
CHECKED = 4  # samples


def open_saved_model(folder: Path, *, trusted: bool, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress FOLDER --trust --data FILE.py``.

    The Python that ``SLIMLINE_PYTHON_TENSORFLOW`` names, or this one, must have TensorFlow and tf2onnx. The lifted module must give what ONNX Runtime gives for
    the converted file, and what TensorFlow gives for the folder.

    Raises:
        UsageError: it is not said that the folder is trusted.
        ModelError: it cannot be converted; or as ``open_onnx``.
    """
    if not trusted:
        raise UsageError(f"{folder} is a TensorFlow SavedModel: opening it can run code that it holds.", hint="If you made it or trust who did, give --trust.")
    kept = tempfile.TemporaryDirectory(prefix="slimline-")  # goes with the source that holds it
    file = Path(kept.name, f"{folder.resolve().name}.onnx")
    _asked("convert", folder, out=str(file))
    return open_onnx(file, data=data, metric=metric, also=lambda model, module, example: compared(folder, model, module, example, kept))


def compared(folder: Path, model: OnnxModel, module: nn.Module, example: Samples, kept: tempfile.TemporaryDirectory[str]) -> list[str]:
    """Nothing, if the module gives what TensorFlow gives for the folder; else a note on why that could not be told. ``kept``: where the converted file lies.

    Raises:
        ModelError: it gives something else.
    """
    samples = Samples(*(_pytree.tree_map(lambda t: t[torch.arange(CHECKED) % len(t)], given) for given in (example.args, example.kwargs)))
    values = dict(zip((d["name"] for d in model.inputs), model.ordered(samples), strict=True))
    with stored(values) as (place, files):
        try:
            found = _asked("run", folder, inputs=files, out=str(place))["outputs"]
        except ModelError as error:
            return [_note(folder, error.message)]
        theirs = {name: torch.from_numpy(np.load(held, allow_pickle=False)) for name, held in found.items()}
    with torch.no_grad():
        ours = _pytree.tree_leaves(module(*samples.args, **samples.kwargs))
    names = [d["name"] for d in model.parsed["graph"]["outputs"]]
    if set(names) != set(theirs) or len(ours) != len(names):
        return [_note(folder, f"its outputs are called {', '.join(theirs)} there, {', '.join(names)} here")]
    check_outputs(folder, "TensorFlow", names, ours, [theirs[n] for n in names])
    return []


def _note(folder: Path, why: str) -> str:
    return f"what {folder.name} became: not compared with TensorFlow ({why})"


def _asked(do: str, folder: Path, **request: Any) -> Mapping[str, Any]:
    """What TensorFlow's Python answers.

    Raises:
        ModelError: it fails, or has not what it needs.
    """
    python = interpreter(TENSORFLOW)
    with tempfile.TemporaryDirectory(prefix="slimline-") as place:
        answer = Path(place, "answer.json")
        asked = json.dumps({"do": do, "folder": str(folder.resolve()), "answer": str(answer), **request})
        try:
            done = subprocess.run([python, "-I", str(RUNNER)], input=asked, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"{folder}: {python}, which has TensorFlow, did not answer: {error}.", hint=f"{variable(TENSORFLOW)} names it.") from error
        if not answer.is_file():
            said = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1][:300]
            raise ModelError(
                f"{folder} cannot be converted with {python}: {said}",
                hint=f"Put TensorFlow and tf2onnx into an environment of its own (pip install tensorflow-cpu tf2onnx) and name its Python: {variable(TENSORFLOW)}=PATH.",
            )
        found: dict[str, Any] = json.loads(answer.read_text())
    return found
