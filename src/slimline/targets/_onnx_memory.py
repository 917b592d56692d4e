"""How much ONNX Runtime's CPU provider allocates for a call's values: the memory pattern that it traces in one call and takes at once in the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from slimline.targets._tflite_reading import Buffer, aligned

ALIGNMENT = 256
VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})  # their output is their first input
OVER_THEIR_INPUT = frozenset(  # where nobody else reads it and the type stays; the others of 1.32's operations of one or two inputs were seen to allocate
    ("Cast", "Clip", "Elu", "HardSigmoid", "LeakyRelu", "LogSoftmax", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh")
)
ADDING, SUMMAND = frozenset({"Conv", "FusedConv"}), 3  # convolutions that took in the addition behind them write over what they add to
SHAPED_BY_VALUES = frozenset({"Expand", "Tile"})  # as ``Reshape``, by an input that may be computed

Shape = tuple[tuple[int, ...], ...]  # a value's shape in each of several calls, and the bytes of an element


def values(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> tuple[Buffer, ...]:
    """Each buffer that the runtime allocates, in the graph's own order; sizes from a run that exposes every value. Inputs and outputs of the graph are the caller's.

    As ONNX Runtime's planner has it: a value lies over its operation's input where the operation may do so and nobody reads that any more, else in the buffer of the same shape that was
    given up last, else in a new one. Shapes count as the same where the runtime knows so before it runs: not below a reshape whose sizes are computed, or where one of them
    follows from a free batch.
    """
    graph, arrays = model.graph, _values(model, inputs)
    shapes = _shapes(model, inputs, arrays)
    known = _known(graph, shapes)
    ports = {p.name for p in (*graph.input, *graph.output)}
    readers = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    owner: dict[str, str] = {}
    waiting: dict[str, int] = {}  # readers of a buffer that have yet to come
    free: list[str] = []  # the last to be given up first
    first: dict[str, int] = {}
    last: dict[str, int] = {}

    def same(one: str, other: str) -> bool:
        return {one, other} <= known and shapes[one] == shapes[other]

    for place, node in enumerate(graph.node):
        for name in node.output:
            if name not in arrays or name in ports:
                continue
            over = [owner[node.input[0]]] if node.op_type in VIEWS and node.input[0] in owner else []
            if node.op_type in OVER_THEIR_INPUT:
                over = [owner[i] for i in node.input[:1] if i in owner and waiting[owner[i]] == 1 and same(i, name)]
            elif node.op_type in ADDING and len(node.input) > SUMMAND:
                over = [owner[i] for i in node.input[SUMMAND : SUMMAND + 1] if i in owner and waiting[owner[i]] == 1 and same(i, name)]
            again = [] if over else [f for f in free if same(f, name)]
            owner[name] = (over or again or [name])[0]
            free = [f for f in free if f != owner[name]]
            waiting[owner[name]] = waiting.get(owner[name], 0) + readers[name]
            first.setdefault(owner[name], place)
        for buffer in (owner[n] for n in (*node.output, *node.input) if n in owner):
            last[buffer] = place
        for buffer in (owner[n] for n in node.input if n in owner):
            waiting[buffer] -= 1
            if not waiting[buffer]:
                free.insert(0, buffer)
    return tuple(Buffer(int(arrays[name].nbytes), start, last[name]) for name, start in first.items())


def _shapes(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]], arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Shape]:
    """As they are, and where the batch is free with two of it."""
    free = any(d.dim_param for port in model.graph.input for d in port.type.tensor_type.shape.dim)
    twice = _values(model, {name: np.concatenate([array, array]) for name, array in inputs.items()}) if free else arrays
    return {name: (array.shape, twice[name].shape, (array.itemsize,)) for name, array in arrays.items()}


def _known(graph: Any, shapes: Mapping[str, Shape]) -> set[str]:
    """Values whose shapes the runtime knows before it runs, but for the batch."""
    from onnx import numpy_helper

    constants = {i.name: i for i in graph.initializer}
    unknown: set[str] = set()
    for node in graph.node:
        lost = any(name in unknown for name in node.input)
        if node.op_type == "Reshape":
            sizes = numpy_helper.to_array(constants[node.input[1]]) if node.input[1] in constants else None
            varies = any(shapes[name][0] != shapes[name][1] for name in node.output if name in shapes)
            lost = sizes is None or (-1 in sizes and varies) or (lost and bool(np.isin(sizes, (0, -1)).any()))
        elif node.op_type in SHAPED_BY_VALUES:
            lost = lost or node.input[1] not in constants
        elif node.op_type == "Shape":
            lost = False
        unknown |= set(node.output) if lost else set()
    return set(shapes) - unknown


def pattern(buffers: tuple[Buffer, ...]) -> int:
    """Bytes of the pattern: values in the order in which they are made, each in the smallest gap that holds it (``MemPatternPlanner`` of ONNX Runtime).

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
    sizes = {name: int(array.nbytes) for name, array in (*inputs.items(), *_values(model, inputs).items())}
    last = {name: place for place, node in enumerate(graph.node) for name in (*node.input, *node.output)}
    last |= dict.fromkeys((o.name for o in graph.output), len(graph.node))
    alive = {n: b for n, b in sizes.items() if n in inputs}
    peak = 0
    for place, node in enumerate(graph.node):
        alive |= {o: sizes[o] for o in node.output if o in sizes}
        peak = max(peak, sum(alive.values()))
        alive = {n: b for n, b in alive.items() if last.get(n, -1) > place}
    return peak


def _values(model: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """What a run that exposes every value gives."""
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
    return {n: np.asarray(v) for n, v in zip(names, session.run(names, dict(inputs)), strict=True)}
