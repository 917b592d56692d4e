"""Plain int8: what ai-edge-quantizer, LiteRT's own, makes of the float file."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from slimline.core.contracts import Artifact
from slimline.core.samples import Samples
from slimline.targets._feed import feed
from slimline.targets._litert_runner import Runner, as_stored
from slimline.targets._tflite_reading import Reading

LABEL = "ai-edge-quantizer, static_wi8_ai8"
SIGNATURE = "serving_default"
RARELY = logging.CRITICAL


def quantized(artifact: Artifact, calibration: Samples) -> bytes:
    """The file in static int8. Its quantizer knows values by name and inputs by a signature, which our files do without: they get both for as long as it takes."""
    from ai_edge_quantizer import quantizer, recipe

    reading = Reading.of(artifact.payload)
    names = {i: f"value_{i}" for i in range(len(reading.graph.tensors)) if not reading.name(i)}
    for place, name in names.items():
        reading.graph.tensors[place].name = name
    reading.model.signatureDefs = [_signature(reading)]
    logging.disable(RARELY)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made = quantizer.Quantizer(reading.pack(), recipe.static_wi8_ai8())
            found = made.quantize(made.calibrate({SIGNATURE: list(_feeds(artifact, calibration))}, num_threads=1))
    finally:
        logging.disable(logging.NOTSET)
    result = Reading.of(bytes(found.quantized_model))
    result.model.signatureDefs = None
    for tensor in result.graph.tensors:
        if tensor.name and tensor.name.decode().startswith("value_"):
            tensor.name = None
    return result.pack()


def _signature(reading: Reading) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = SIGNATURE, 0
    made.inputs, made.outputs = ([_entry(schema, reading, int(t)) for t in tensors] for tensors in (reading.graph.inputs, reading.graph.outputs))
    return made


def _entry(schema: Any, reading: Reading, tensor: int) -> Any:
    made = schema.TensorMapT()
    name = reading.graph.tensors[tensor].name
    made.name, made.tensorIndex = name if isinstance(name, str) else name.decode(), tensor
    return made


def _feeds(artifact: Artifact, calibration: Samples) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """One sample at a time, as the file takes it."""
    runner = Runner(artifact.payload)
    for few in calibration.batches(1):
        given = feed(artifact, few)
        yield {d["name"]: as_stored(given[d["name"]], place in runner.last, d) for place, d in enumerate(runner.inputs)}
