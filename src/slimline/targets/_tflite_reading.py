"""What stands in a .tflite file: its operators, its constants and when each value lives."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from slimline.core.contracts import Operation, Port
from slimline.core.trial import Latency
from slimline.errors import LoweringError
from slimline.targets._tflite_file import CHANNELS_LAST, IDENTIFIER

SIZES = {"FLOAT32": 4, "INT32": 4, "INT8": 1, "UINT8": 1, "INT16": 2, "INT64": 8, "BOOL": 1, "INT4": 0.5, "FLOAT16": 2}
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "GATHER")


@dataclass(frozen=True)
class Buffer:
    """Memory that is alive from operator ``first`` to operator ``last``, both included; ``tensor``: whose it is, ``-1``: a kernel's own."""

    nbytes: int
    first: int
    last: int
    tensor: int = -1


@dataclass(frozen=True)
class Reading:
    """A parsed file. ``outside``: how many of its constants stood behind the model, out of line; here they are in line."""

    model: Any
    outside: int = 0

    @classmethod
    def of(cls, payload: bytes) -> Reading:
        """Parse a file.

        Raises:
            LoweringError: it is none.
        """
        from ai_edge_litert import schema_py_generated as schema

        if payload[4:8] != b"TFL3":
            raise LoweringError("This is no .tflite file: it does not say TFL3 at its fourth byte.")
        try:
            model = schema.ModelT.InitFromPackedBuf(payload, 0)
            outside = [b for b in model.buffers if b.offset > 1]
            for buffer in outside:
                buffer.data = np.frombuffer(payload, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
        except Exception as error:  # the flatbuffers reader raises whatever a wrong offset leads to
            raise LoweringError(f"The .tflite file is damaged: {error}") from error
        return cls(model, len(outside))

    def pack(self) -> bytes:
        """The file's bytes, every constant in line."""
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    @property
    def graph(self) -> Any:
        return self.model.subgraphs[0]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Each operator's type (``CONV_2D``)."""
        from ai_edge_litert import schema_py_generated as schema

        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in self.model.operatorCodes]
        return tuple(names[codes[o.opcodeIndex]] for o in self.graph.operators)

    def name(self, tensor: int) -> str:
        name: bytes = self.graph.tensors[tensor].name or b""
        return name.decode()

    def type_of(self, tensor: int) -> str:
        from ai_edge_litert import schema_py_generated as schema

        names = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        return str(names[self.graph.tensors[tensor].type])

    def constant(self, tensor: int) -> bool:
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def nbytes(self, tensor: int) -> int:
        """At batch 1."""
        shape = self.graph.tensors[tensor].shape
        return math.ceil(math.prod(map(int, shape if shape is not None else ())) * SIZES[self.type_of(tensor)])

    def work(self, operator: int) -> int:
        """Multiply-adds of a layer, or the values that another operator writes, for one sample."""
        kind, made = self.kinds[operator], self.graph.operators[operator]
        written = math.prod(map(int, self.graph.tensors[int(made.outputs[0])].shape))
        if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            return written
        weight = [int(n) for n in self.graph.tensors[int(made.inputs[1])].shape]
        return written * math.prod(weight[1:] if kind != "DEPTHWISE_CONV_2D" else weight[1:3])

    def owner(self, operator: int) -> str:
        """The parameter whose weight the operator uses (or decodes for the one that does)."""
        decoded = {int(o.outputs[0]): o for o, kind in zip(self.graph.operators, self.kinds, strict=True) if kind == "DEQUANTIZE"}
        for tensor in self.graph.operators[operator].inputs:
            source = decoded.get(int(tensor))
            tensor = source.inputs[0] if source is not None else tensor
            if tensor >= 0 and self.constant(tensor) and self.name(tensor):
                return self.name(tensor)
        return ""

    @cached_property
    def lives(self) -> tuple[Buffer, ...]:
        """Each value that is no constant, in the order of tensors. Inputs live from the start, outputs to the end."""
        first: dict[int, int] = dict.fromkeys(map(int, self.graph.inputs), 0)
        last: dict[int, int] = {}
        for place, operator in enumerate(self.graph.operators):
            for tensor in map(int, operator.outputs):
                first.setdefault(tensor, place)
                last[tensor] = place
            last |= {int(t): place for t in operator.inputs if t >= 0}
        last |= dict.fromkeys(map(int, self.graph.outputs), len(self.graph.operators) - 1)
        return tuple(Buffer(self.nbytes(t), first[t], last.get(t, 0), t) for t in sorted(first) if not self.constant(t))

    @property
    def constant_bytes(self) -> int:
        return sum(self.nbytes(t) for t in range(len(self.graph.tensors)) if self.constant(t))

    @cached_property
    def channels_last(self) -> frozenset[int]:
        """Places of the inputs whose channels lie last in the file."""
        found = [self.model.buffers[e.buffer].data for e in self.model.metadata or () if e.name == CHANNELS_LAST.encode()]
        return frozenset(int(place) for data in found for place in data)

    def ports(self) -> tuple[Port, ...]:
        """The inputs as the model takes them: channels first, numbers where the file holds integers that stand for them."""
        found = []
        for place, tensor in enumerate(map(int, self.graph.inputs)):
            shape = tuple(map(int, self.graph.tensors[tensor].shape))
            if place in self.channels_last:
                shape = (shape[0], shape[-1], *shape[1:-1])
            dtype = {"FLOAT32": "float32", "INT8": "float32", "BOOL": "bool"}.get(self.type_of(tensor), self.type_of(tensor).lower())
            found.append(Port(self.name(tensor), dtype, (None, *shape[1:])))
        return tuple(found)

    def operations(self, times: Mapping[int, float], backend: Callable[[int], str]) -> tuple[Operation, ...]:
        """All operators, with the times of some and what runs each."""
        found = []
        for place, (kind, operator) in enumerate(zip(self.kinds, self.graph.operators, strict=True)):
            read = [int(t) for t in operator.inputs if t >= 0]
            integer = kind not in ("QUANTIZE", "DEQUANTIZE") and any(self.type_of(t) in ("INT8", "INT4") for t in read)
            held = sum(self.nbytes(t) for t in read if self.constant(t))
            found.append(
                Operation(
                    f"{kind}_{place}", kind, "integer" if integer else "float", self.owner(place), times.get(place), backend(place), held, self.work(place)
                )
            )
        return tuple(found)

    def until(self, operator: int) -> bytes:
        """The file that ends after an operator, whose value is its output."""
        model = copy.copy(self.model)
        graph = copy.copy(self.graph)
        graph.operators = graph.operators[: operator + 1]
        graph.outputs = graph.operators[-1].outputs
        model.subgraphs = [graph]
        return Reading(model).pack()


def layer_times(reading: Reading, latency: Callable[[list[bytes]], Sequence[Latency]]) -> dict[int, float]:
    """Milliseconds by operator, of those with a weight, for runtimes that have no profiler.

    The time of a layer is what the file that ends with it takes longer than the file that ends with the layer before
    it, so what stands between two layers counts to the second, and what follows the last one to that.
    """
    layers = [place for place, kind in enumerate(reading.kinds) if kind in LAYERS]
    if not layers:
        return {}
    totals = [la.median for la in latency([reading.until(p) for p in (*layers[:-1], len(reading.kinds) - 1)])]
    rising = [0.0, *itertools.accumulate(totals, max)]
    return {place: after - before for place, before, after in zip(layers, rising, rising[1:], strict=False)}


def plan(buffers: Sequence[Buffer], alignment: int = 16) -> tuple[int, ...]:
    """Where each buffer lies: the largest first, each at the lowest place that is free while it lives.

    The planner of TensorFlow Lite Micro (``GreedyMemoryPlanner``), whose offsets it gives; equal sizes are placed from
    the last to the first, as there.

    References:
        Lee et al., "On-Device Neural Net Inference with Mobile GPUs", 2019, section 4.2 (greedy by size).

    Example:
        >>> plan([Buffer(32, 0, 1), Buffer(16, 1, 2), Buffer(32, 2, 3)])
        (0, 32, 0)
    """
    sizes = [aligned(b.nbytes, alignment) for b in buffers]
    offsets: dict[int, int] = {}
    for place in sorted(range(len(buffers)), key=lambda i: (-sizes[i], -i)):
        wanted, offset = buffers[place], 0
        for other in sorted(offsets, key=lambda i: offsets[i]):
            alive = buffers[other].first <= wanted.last and wanted.first <= buffers[other].last
            if alive and offsets[other] - offset < sizes[place]:
                offset = max(offset, offsets[other] + sizes[other])
            elif alive:
                break
        offsets[place] = offset
    return tuple(offsets[i] for i in range(len(buffers)))


def peak(buffers: Sequence[Buffer], alignment: int = 16) -> int:
    """Bytes that the plan takes."""
    return max((o + aligned(b.nbytes, alignment) for o, b in zip(plan(buffers, alignment), buffers, strict=True)), default=0)


def aligned(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
