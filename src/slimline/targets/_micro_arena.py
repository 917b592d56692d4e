"""How much RAM a .tflite file takes in TensorFlow Lite Micro: values, kernels' scratch, and the interpreter's own records."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slimline.targets._tflite_reading import Buffer, Reading, aligned, peak

ALIGNMENT = 16
# Bytes of the interpreter's records, on 64 bits: read off its recording allocator (tflite-micro 0.dev20261023) on chains of
# one, two and four operators of each type. A 32-bit board has smaller pointers and takes less.
BASE = 528
TENSOR, OPERATOR, PORT, PORT_GRID, CHANNEL = 24, 64, 64, 32, 8
KERNEL = {
    "CONV_2D": 104, "DEPTHWISE_CONV_2D": 104, "FULLY_CONNECTED": 112, "ADD": 72, "SUB": 72, "MUL": 56, "DIV": 40, "MEAN": 80, "RESHAPE": 36,
    "PAD": 60, "PADV2": 60, "AVERAGE_POOL_2D": 72, "MAX_POOL_2D": 72, "CONCATENATION": 88, "RELU": 32, "RELU6": 20, "LOGISTIC": 16, "TANH": 16,
    "SOFTMAX": 84, "LOG_SOFTMAX": 8, "HARD_SWISH": 40, "TRANSPOSE": 0, "LEAKY_RELU": 32, "MAXIMUM": 8, "MINIMUM": 8, "QUANTIZE": 32,
    "DEQUANTIZE": 24, "GATHER": 40,
}  # fmt: skip
"""Operators that the interpreter has, with the bytes that one of each keeps."""


@dataclass(frozen=True)
class Arena:
    """``head``: values and scratch, planned over time. ``tail``: records that stay."""

    head: int
    tail: int

    @property
    def nbytes(self) -> int:
        return self.head + self.tail


def arena(reading: Reading) -> Arena:
    """What the interpreter asks for at batch 1, with its reference kernels."""
    buffers = [*reading.lives, *scratch(reading)]
    tail = BASE + TENSOR * len(reading.graph.tensors)
    for port in (*reading.graph.inputs, *reading.graph.outputs):
        tail += PORT + (PORT_GRID if reading.type_of(int(port)) == "INT8" else 0)
    for kind, operator in zip(reading.kinds, reading.graph.operators, strict=True):
        tail += OPERATOR + KERNEL.get(kind, 0)
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D") or (kind == "FULLY_CONNECTED" and reading.type_of(int(operator.inputs[1])) == "INT8"):
            tail += CHANNEL * int(reading.graph.tensors[int(operator.outputs[0])].shape[-1])
    return Arena(peak(buffers, ALIGNMENT), aligned(tail, ALIGNMENT))


def scratch(reading: Reading) -> list[Buffer]:
    """Memory that kernels ask for while they run."""
    found = []
    for place, (kind, operator) in enumerate(zip(reading.kinds, reading.graph.operators, strict=True)):
        if kind == "MEAN":
            value, axes = map(int, operator.inputs)
            sizes = [4 * len(reading.graph.tensors[value].shape), 4 * math.prod(map(int, reading.graph.tensors[axes].shape))]
            if reading.type_of(value) == "INT8":
                sizes.append(4 * math.prod(map(int, reading.graph.tensors[int(operator.outputs[0])].shape)))
            found += [Buffer(size, place, place) for size in sizes]
    return found
