"""Runs a .tflite file with the TensorFlow Lite Micro interpreter and NumPy alone; as a program it says how much arena the file takes."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
VALUES = runpy.run_path(str(Path(__file__).with_name("_tflite_values.py")))  # by its path, since this is run by its own, without Slimline
as_stored, as_numbers, channels_last = VALUES["as_stored"], VALUES["as_numbers"], VALUES["channels_last"]
ROOM = 1 << 20  # beyond ten times the file, which is the interpreter's own guess


class Runner:
    """A file in the micro interpreter, which takes one sample at a time. Inputs are the model's own: channels first, in numbers."""

    def __init__(self, payload: bytes) -> None:
        from tflite_micro.python.tflite_micro import runtime
        from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

        self.interpreter = runtime.Interpreter.from_bytes(payload, arena_size=10 * len(payload) + ROOM)
        model = schema.Model.GetRootAs(payload, 0)
        graph = model.Subgraphs(0)
        self.inputs = [self._port(graph, graph.Inputs(i), self.interpreter.get_input_details(i)) for i in range(graph.InputsLength())]
        self.outputs = [self._port(graph, graph.Outputs(i), self.interpreter.get_output_details(i)) for i in range(graph.OutputsLength())]
        self.last = channels_last(model)

    def _port(self, graph: Any, tensor: int, detail: Mapping[str, Any]) -> dict[str, Any]:
        quantization = detail["quantization_parameters"]
        scales, zeros = quantization["scales"], quantization["zero_points"]
        pair = (float(scales[0]), int(zeros[0])) if len(scales) else (0.0, 0)
        return {"name": (graph.Tensors(tensor).Name() or b"").decode(), "dtype": detail["dtype"], "shape": tuple(detail["shape"]), "quantization": pair}

    def __call__(self, given: Mapping[str, Array]) -> list[Array]:
        stored = [as_stored(given[d["name"]], place in self.last, d) for place, d in enumerate(self.inputs)]
        columns: list[list[Array]] = [[] for _ in self.outputs]
        for sample in range(len(stored[0])):
            self.set(stored, sample)
            self.interpreter.invoke()
            for place, column in enumerate(columns):
                column.append(np.array(self.interpreter.get_output(place)))
        return [as_numbers(np.concatenate(column), d) for column, d in zip(columns, self.outputs, strict=True)]

    def set(self, stored: Sequence[Array], sample: int) -> None:
        for place, array in enumerate(stored):
            self.interpreter.set_input(np.ascontiguousarray(array[sample : sample + 1]), place)


def load(file: str, threads: int) -> Callable[[Mapping[str, Array]], Sequence[Array]]:
    """``threads`` is not heard: the interpreter has one."""
    with open(file, "rb") as stream:
        return Runner(stream.read())


if __name__ == "__main__":
    runner = Runner(sys.stdin.buffer.read())
    for place, detail in enumerate(runner.inputs):
        runner.interpreter.set_input(np.zeros(detail["shape"], detail["dtype"]), place)
    runner.interpreter.invoke()
    runner.interpreter.print_allocations()  # to the process's own standard error, which Python does not see
