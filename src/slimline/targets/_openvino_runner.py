"""Runs an OpenVINO IR and knows nothing of how it was made. Executed by its path, in a process without Slimline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import openvino


def settings(threads: int) -> dict[str, Any]:
    """Of every measurement, and what a deployment must set to get the same numbers.

    Float layers compute in float32 (the default is bf16 where the processor can) on float activations (the default rounds
    those of linear layers with integer weights to 8 bits).
    """
    return {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}


def load(file: str, threads: int) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """The function from inputs by name to outputs."""
    compiled = openvino.Core().compile_model(file, "CPU", settings(threads))
    request = compiled.create_infer_request()

    def run(inputs: Mapping[str, Any]) -> Sequence[Any]:
        request.infer(dict(inputs))
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return run
