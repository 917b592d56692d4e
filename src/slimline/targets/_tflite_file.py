"""A .tflite file being built: tensors, constants and operators in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimline.errors import LoweringError

IDENTIFIER = b"TFL3"
VERSION = 3
CHANNELS_LAST = "channels_last"  # name of the metadata entry that lists such inputs
TYPES = {"float32": "FLOAT32", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}
# The lowest operator version that knows int8 (and per-channel weights where they exist); the first that a kernel registers otherwise.
VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "QUANTIZE": 2, "DEQUANTIZE": 2, "RESHAPE": 1}
INT8_VERSION = 2


@dataclass(frozen=True)
class Grid:
    """Integers of a tensor: ``x = scale * (q - zero_point)``; several scales go along dimension ``axis``."""

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Tensor:
    """``shape`` at batch 1; ``dtype`` in numpy's words, or ``int4``; ``grid`` where it holds integers that stand for numbers."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    grid: Grid | None = None
    name: str = ""
    free_batch: bool = True


@dataclass
class File:
    """One subgraph. Operators are kept in the order in which they are added, which is the order of execution."""

    tensors: list[Tensor] = field(default_factory=list)
    constants: dict[int, bytes] = field(default_factory=dict)
    operators: list[tuple[str, list[int], list[int], str, dict[str, Any]]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    channels_last: list[int] = field(default_factory=list)
    _shared: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)

    def tensor(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, array: np.ndarray[Any, Any], name: str = "", grid: Grid | None = None, *, bits: int = 8) -> int:
        """A constant; small unnamed ones with equal content are stored once. ``bits`` 4: packed, the first value in the low nibble."""
        payload = np.ascontiguousarray(array).tobytes()
        dtype = str(array.dtype)
        if bits == 4:
            flat = np.append(array.reshape(-1), np.zeros(array.size % 2, array.dtype)).astype(np.uint8) & 0xF
            payload, dtype = (flat[0::2] | (flat[1::2] << 4)).tobytes(), "int4"
        key = (dtype, array.shape, payload)
        if not name and grid is None and key in self._shared:
            return self._shared[key]
        index = self.tensor(Tensor(tuple(array.shape), dtype, grid, name, free_batch=False))
        self.constants[index] = payload
        if not name and grid is None:
            self._shared[key] = index
        return index

    def operator(self, kind: str, inputs: list[int], output: Tensor, options: str = "", **values: Any) -> int:
        """Add an operator (``CONV_2D``) with options of a table (``Conv2DOptions``); gives its output tensor."""
        index = self.tensor(output)
        self.operators.append((kind, inputs, [index], options, values))
        return index

    def pack(self, *, compact: bool = False) -> bytes:
        """The file. Constants are stored in line: the micro interpreter reads out-of-line ones as garbage, without a word.

        ``compact`` leaves out what the micro interpreter does not read: all zero points of a weight but one, and the scales
        of biases. It is worth 20 bytes a channel; LiteRT itself refuses such a file.
        """
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT()
        model.version, model.description = VERSION, "Slimline"
        model.buffers = [schema.BufferT()]
        graph = schema.SubGraphT()
        graph.tensors = [self._tensor(schema, model, i, t, compact) for i, t in enumerate(self.tensors)]
        graph.inputs, graph.outputs = self.inputs, self.outputs
        codes: dict[tuple[str, int], int] = {}
        graph.operators = [self._operator(schema, codes, *o) for o in self.operators]
        model.operatorCodes = [self._code(schema, kind, version) for kind, version in codes]
        model.subgraphs = [graph]
        if self.channels_last:
            entry, buffer = schema.MetadataT(), schema.BufferT()
            buffer.data = np.frombuffer(bytes(self.inputs.index(i) for i in self.channels_last), np.uint8)
            entry.name, entry.buffer = CHANNELS_LAST, len(model.buffers)
            model.buffers.append(buffer)
            model.metadata = [entry]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _tensor(self, schema: Any, model: Any, index: int, tensor: Tensor, compact: bool) -> Any:
        made = schema.TensorT()
        if tensor.dtype not in TYPES and tensor.dtype != "int4":
            raise LoweringError(f"{tensor.name or 'A value'} is {tensor.dtype}: a .tflite file of this kind has no such type.", hint="Use float32 or integers.")
        made.type = getattr(schema.TensorType, "INT4" if tensor.dtype == "int4" else TYPES[tensor.dtype])
        made.shape = list(tensor.shape)
        made.hasRank = True
        if tensor.name:
            made.name = tensor.name
        if index in self.inputs and tensor.free_batch:
            made.shapeSignature = [-1, *tensor.shape[1:]]
        if index in self.constants:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(self.constants[index], np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        if tensor.grid is not None and not (compact and tensor.dtype == "int32"):
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = np.asarray(tensor.grid.scale, np.float32)
            made.quantization.zeroPoint = np.full(1 if compact else len(tensor.grid.scale), tensor.grid.zero_point, np.int64)
            made.quantization.quantizedDimension = tensor.grid.axis
        return made

    def _operator(self, schema: Any, codes: dict[tuple[str, int], int], kind: str, inputs: list[int], outputs: list[int], options: str, values: Any) -> Any:
        version = VERSIONS.get(kind, INT8_VERSION if any(i >= 0 and self.tensors[i].dtype == "int8" for i in inputs) else 1)
        made = schema.OperatorT()
        made.opcodeIndex = codes.setdefault((kind, version), len(codes))
        made.inputs, made.outputs = inputs, outputs
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in values.items():
                setattr(made.builtinOptions, name, value)
        return made

    def _code(self, schema: Any, kind: str, version: int) -> Any:
        made = schema.OperatorCodeT()
        made.builtinCode = getattr(schema.BuiltinOperator, kind)
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version = version
        return made
