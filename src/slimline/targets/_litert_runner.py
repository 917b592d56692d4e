"""Runs a .tflite file with LiteRT and NumPy alone: for the process that checks it."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
VALUES = runpy.run_path(str(Path(__file__).with_name("_tflite_values.py")))  # by its path, since this is run by its own, without Slimline
as_stored, as_numbers, channels_last = VALUES["as_stored"], VALUES["as_numbers"], VALUES["channels_last"]


class Runner:
    """A file in LiteRT. Inputs are the model's own (channels first); where the file wants channels last they are moved."""

    def __init__(self, payload: bytes, threads: int = 1) -> None:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_content=payload, num_threads=threads)
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        self.last = channels_last(schema.Model.GetRootAs(payload, 0))
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


def load(file: str, threads: int) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    """The function from inputs by name to outputs."""
    with open(file, "rb") as stream:
        return Runner(stream.read(), threads)
