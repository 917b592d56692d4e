"""Which way in a first argument takes, by its form alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slimline.core.file_kinds import PICKLED, ZOOS
from slimline.errors import ModelError
from slimline.sources.task_file import TaskFile

if TYPE_CHECKING:
    import torch

REFUSED = {
    ".safetensors": "Weights alone are no model: give a FILE.py that defines model(), and these with --weights.",
    ".tflite": "Give the model that it was converted from, or convert it: python -m tf2onnx.convert --tflite {name} --output {stem}.onnx",
    ".pb": "If it is a SavedModel's, give the folder that it lies in, with --trust; a frozen graph is converted by: python -m tf2onnx.convert --graphdef {name} --output {stem}.onnx",
}


def open_source(spec: str, *, weights: Mapping[str, torch.Tensor] | None = None, data: Path | None = None, metric: str = "", trusted: bool = False) -> TaskFile:
    """The model and task that ``spec`` names: a Python file, or a model that another tool wrote.

    ``trusted``: files that can hold code may be opened.

    Raises:
        ModelError: it names no model that can be opened; the hint says how to make it one.
        DataError: the data file is at fault.
    """
    path = Path(spec)
    kind = path.suffix.lower()
    if spec.partition(":")[0] in ZOOS:
        from slimline.sources.zoo import open_zoo

        return open_zoo(spec, weights=weights, data=data, metric=metric)
    if kind == ".onnx":
        from slimline.sources.foreign import no_weights
        from slimline.sources.onnx import open_onnx

        no_weights(weights, "an ONNX file")
        return open_onnx(path, data=data, metric=metric)
    if kind in (".keras", ".h5", ".hdf5"):
        from slimline.sources.foreign import no_weights
        from slimline.sources.keras import open_keras

        no_weights(weights, "a Keras file")
        return open_keras(path, data=data, metric=metric)
    if kind == ".pt2":
        from slimline.sources.exported import open_exported
        from slimline.sources.foreign import no_weights

        no_weights(weights, "an exported program")
        return open_exported(path, trusted=trusted, data=data, metric=metric)
    if kind in PICKLED:
        raise ModelError(
            f"{spec} is a pickle, which can run code when it is opened; Slimline does not open it.",
            hint="Write a FILE.py whose model() builds the network, and give the weights with --weights FILE.safetensors: "
            f"safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors').",
        )
    if kind in REFUSED:
        raise ModelError(f"{spec} cannot be compressed as it is.", hint=REFUSED[kind].format(name=path.name, stem=path.stem))
    if path.is_dir() and (path / "saved_model.pb").is_file():
        from slimline.sources.foreign import no_weights
        from slimline.sources.saved_model import open_saved_model

        no_weights(weights, "a SavedModel folder")
        return open_saved_model(path, trusted=trusted, data=data, metric=metric)
    if path.is_dir() and (path / "config.json").is_file():
        from slimline.sources.foreign import no_weights
        from slimline.sources.transformers import open_folder

        no_weights(weights, "a Hugging Face folder")
        return open_folder(path, data=data, metric=metric)
    return TaskFile.load(spec, weights=weights, data=data, metric=metric)
