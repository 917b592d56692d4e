"""Runs a .tflite file with LiteRT and NumPy alone: for the process that checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Runner:
    """A file in LiteRT. Inputs are the model's own (channels first); where the file wants channels last they are moved."""

    def __init__(self, payload: bytes, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_content=payload, num_threads=threads)
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        self.last = channels_last(payload)
        self.batch = 0

    def __call__(self, given: Mapping[str, Array]) -> list[Array]:
        arrays = [as_stored(given[d["name"]], place in self.last, d) for place, d in enumerate(self.inputs)]
        self.prepare(arrays)
        for detail, array in zip(self.inputs, arrays, strict=True):
            self.interpreter.set_tensor(detail["index"], array)
        self.interpreter.invoke()
        return [as_numbers(self.interpreter.get_tensor(d["index"]), d) for d in self.outputs]

    def prepare(self, arrays: Sequence[Array]) -> None:
        """Allocate for the batch of these inputs."""
        if len(arrays[0]) != self.batch:
            for detail, array in zip(self.inputs, arrays, strict=True):
                self.interpreter.resize_tensor_input(detail["index"], array.shape)
            self.interpreter.allocate_tensors()
            self.batch = len(arrays[0])


def channels_last(payload: bytes) -> frozenset[int]:
    """Places of the inputs whose channels lie last, as the file's metadata says."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(payload, 0)
    for place in range(model.MetadataLength()):
        entry = model.Metadata(place)
        if entry.Name() == b"channels_last":
            return frozenset(int(i) for i in model.Buffers(entry.Buffer()).DataAsNumpy())
    return frozenset()


def as_stored(array: Array, last: bool, detail: Mapping[str, Any]) -> Array:
    """An input as the file takes it: channels moved, numbers made integers."""
    if last:
        array = np.moveaxis(array, 1, -1)
        array = array[:, None] if array.ndim == 3 else array
    scale, zero = detail["quantization"]
    if scale and detail["dtype"] == np.int8:
        array = np.clip(np.round(array / np.float32(scale)) + zero, -128, 127)
    return np.ascontiguousarray(array.astype(detail["dtype"], copy=False))


def as_numbers(array: Array, detail: Mapping[str, Any]) -> Array:
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale and array.dtype == np.int8 else array


def load(file: str, threads: int) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    """The function from inputs by name to outputs."""
    with open(file, "rb") as stream:
        return Runner(stream.read(), threads)
