"""How much ONNX Runtime's CPU provider allocates for a call's values: the memory pattern that it traces in one call and takes at once in the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slimline.targets._tflite_reading import Buffer, aligned

ALIGNMENT = 256
VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # their output is their first input


def values(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> tuple[Buffer, ...]:
    """Each value that the runtime allocates, in the graph's own order; sizes from a run that exposes every value. Inputs and outputs of the graph are the caller's."""
    graph = model.graph
    sizes = _sizes(model, inputs)
    ports = {p.name for p in (*graph.input, *graph.output)}
    owner: dict[str, str] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        for name in node.output:
            if name in sizes and name not in ports:
                owner[name] = owner[node.input[0]] if node.op_type in VIEWS and node.input[0] in owner else name
                first.setdefault(owner[name], place)
        last |= {owner[n]: place for n in (*node.output, *node.input) if n in owner}
    return tuple(Buffer(sizes[name], start, last[name]) for name, start in first.items())


def pattern(buffers: tuple[Buffer, ...]) -> int:
    """Bytes of the pattern: values in the order in which they are made, each in the smallest gap that holds it (``MemPatternPlanner`` of ONNX Runtime).

    Left out is that the runtime also writes some values over an input that nobody else reads, and keeps freed buffers for later values of the same known shape.

    Example:
        >>> pattern((Buffer(256, 0, 1), Buffer(300, 1, 2), Buffer(512, 2, 3)))
        1280
    """
    alive: list[tuple[int, int, int]] = []  # offset, end, last use
    total = 0
    for buffer in buffers:
        alive = sorted(a for a in alive if a[2] >= buffer.first)
        size, end, gaps = aligned(buffer.nbytes, ALIGNMENT), 0, []
        for start, stop, _ in (*alive, (total, total, 0)):
            if start - end >= size:
                gaps.append((start - end - size, end))
            end = max(end, stop) if start < total else end
        offset = min(gaps)[1] if gaps else max((stop for _, stop, _ in alive), default=0)
        alive.append((offset, offset + size, buffer.last))
        total = max(total, offset + size)
    return total


def peak_activations(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """Most bytes of values alive at once, in the graph's own order, inputs and outputs of the graph included: what every target counts, whatever gaps its allocator leaves."""
    graph = model.graph
    sizes = {name: int(array.nbytes) for name, array in inputs.items()} | _sizes(model, inputs)
    last = {name: place for place, node in enumerate(graph.node) for name in (*node.input, *node.output)}
    last |= dict.fromkeys((o.name for o in graph.output), len(graph.node))
    alive = {n: b for n, b in sizes.items() if n in inputs}
    peak = 0
    for place, node in enumerate(graph.node):
        alive |= {o: sizes[o] for o in node.output if o in sizes}
        peak = max(peak, sum(alive.values()))
        alive = {n: b for n, b in alive.items() if last.get(n, -1) > place}
    return peak


def _sizes(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    import onnx
    import onnxruntime

    exposed = type(model)()
    exposed.CopyFrom(model)
    present = {o.name for o in model.graph.output}
    for node in model.graph.node:
        exposed.graph.output.extend([onnx.helper.make_empty_tensor_value_info(o) for o in node.output if o and o not in present])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return {n: int(np.asarray(v).nbytes) for n, v in zip(names, session.run(names, dict(inputs)), strict=True)}
