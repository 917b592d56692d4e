"""From a frozen program to a .tflite graph: channels last, integers where the plan says so.

Every value of the program is followed in the form that it has in the file: its grid if it holds
integers, and where its channels lie. An operation becomes an integer operator when its inputs come
from integers, its output goes to integers and its weight is to execute in integers; else it
computes in float32, with conversions at the borders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import fx

from slimline.core.edits import Encode
from slimline.core.samples import Samples
from slimline.errors import LoweringError, UnsupportedFormat
from slimline.model.operations import CLAMP, PADS, RELU, SAME, activation_after, operation_name
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.targets._tflite_file import File, Grid, Tensor

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE = decomposed.dequantize_per_tensor.default
DECODE = frozenset({DEQUANTIZE, decomposed.dequantize_per_channel.default, decomposed.dequantize_per_channel_group.default})
CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding})
POOLS = frozenset({aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default})
SPATIAL = CONVOLUTIONS | POOLS
FLATTENING = frozenset({aten.flatten.using_ints, aten.view.default, aten.reshape.default})
CARRIES_ORDER = SAME | RELU | CLAMP | {QUANTIZE, DEQUANTIZE}
ACTIVATIONS = {"": 0, "relu": 1, "relu6": 3}


@dataclass(frozen=True)
class Value:
    """A value in the file. ``shape`` is the program's, at batch 1.

    ``last``: its channels were moved last (a sequence ``[N, C, L]`` is ``[N, 1, L, C]``).
    ``order``: a flattened ``[C, H, W]`` whose elements lie as ``[H, W, C]``.
    """

    tensor: int
    shape: tuple[int, ...]
    last: bool = False
    order: tuple[int, int, int] | None = None


class Lowering:
    """The file under construction, and the program's values in it. ``integer_ports``: inputs and outputs are integers where they can be."""

    def __init__(self, program: Program, example: Samples, *, integer_ports: bool) -> None:
        self.program = program
        self.integer_ports = integer_ports
        self.file = File()
        self.values: dict[fx.Node, Value] = {}
        self.done: set[fx.Node] = set()
        self.batch = len(program.example)
        self._floats: dict[int, Value] = {}
        self._weights: dict[tuple[fx.Node, str], int] = {}

    def run(self) -> File:
        """Lower every node, in order.

        Raises:
            LoweringError: an operation that has no operator here; the message names it.
        """
        from slimline.targets import _tflite_operators

        for node in self.program.graph.nodes:
            if node in self.done or node.op == "get_attr" or (node.op == "call_function" and node.target in DECODE and self._stored(node) is not None):
                continue
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                self._outputs(node)
            elif node.target is QUANTIZE:
                self.values[node] = self.quantized(self.values[given(node)[0]], grid_of(node))
            elif node.target is DEQUANTIZE or node.target in SAME:
                self.values[node] = self.values[given(node)[0]]
            elif not is_size(node):
                emit = _tflite_operators.OPERATORS.get(node.target)
                if emit is None:
                    raise LoweringError(
                        f"{operation_name(node)} (in {self.program.names.get(node.name, node.name)}) has no operator in the .tflite lowering.",
                        hint="Use the onnxruntime target for this model.",
                    )
                emit(self, node)
        return self.file

    # -- ports ---------------------------------------------------------------------------------

    def _input(self, node: fx.Node) -> None:
        shape = self.shape(node)
        value = self.program.example.kwargs.get(str(node.target))
        if value is None:
            value = self.program.example.args[len(self.file.inputs)]
        last = len(shape) in (3, 4) and self._goes_to_spatial(node)
        users = list(node.users)
        grid = grid_of(users[0]) if self.integer_ports and len(users) == 1 and users[0].target is QUANTIZE else None
        dtype = "int8" if grid is not None else str(value.dtype).removeprefix("torch.")
        tensor = self.file.tensor(Tensor(stored_shape(shape, last), dtype, grid, str(node.target)))
        self.file.inputs.append(tensor)
        if last:
            self.file.channels_last.append(tensor)
        self.values[node] = Value(tensor, shape, last)
        if grid is not None:
            self.values[users[0]] = self.values[node]
            self.done.add(users[0])

    def _goes_to_spatial(self, node: fx.Node) -> bool:
        return any(u.target in SPATIAL or ((u.target in CARRIES_ORDER or u.target in PADS) and self._goes_to_spatial(u)) for u in node.users)

    def _outputs(self, node: fx.Node) -> None:
        flat, _ = torch.utils._pytree.tree_flatten(given(node)[0])
        for place, result in enumerate(flat):
            value = self.plain(self.values[result])
            if self.is_integer(value) and not self.integer_ports:
                value = self.as_float(value)
            if value.tensor in self.file.inputs or value.tensor in self.file.outputs:
                raise LoweringError("An output of the model is an input or another output as it is.", hint="Leave it out of the model's outputs.")
            self.file.tensors[value.tensor] = replace(self.file.tensors[value.tensor], name=f"output_{place}")
            self.file.outputs.append(value.tensor)

    # -- values --------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The node's shape at batch 1."""
        shape = self.program.shapes[node.name]
        if shape and shape[0] % self.batch == 0 and self.batch > 1:
            return (shape[0] // self.batch, *shape[1:])
        if shape and self.batch > 1:
            raise LoweringError(f"{self.program.names.get(node.name, node.name)} has the shape {shape}: no first dimension that grows with the batch.")
        return shape

    def is_integer(self, value: Value) -> bool:
        return self.file.tensors[value.tensor].grid is not None

    def grid(self, value: Value) -> Grid:
        grid = self.file.tensors[value.tensor].grid
        assert grid is not None
        return grid

    def float_value(self, node: Any) -> Value:
        """The value of a node in float32; parameters become constants."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            array = self.program.parameter(str(node.target)).detach().numpy()
            return Value(self.file.constant(array), tuple(array.shape))
        return self.as_float(self.values[node])

    def as_float(self, value: Value) -> Value:
        """Converted once, whoever asks."""
        if not self.is_integer(value):
            return value
        if value.tensor not in self._floats:
            tensor = self.file.operator("DEQUANTIZE", [value.tensor], replace(self.file.tensors[value.tensor], dtype="float32", grid=None, name=""))
            self._floats[value.tensor] = replace(value, tensor=tensor)
        return replace(value, tensor=self._floats[value.tensor].tensor)

    def quantized(self, value: Value, grid: Grid) -> Value:
        """On ``grid``; integers on another are requantized."""
        if self.is_integer(value) and self.grid(value) == grid:
            return value
        known = [f for f, v in self._floats.items() if v.tensor == value.tensor and self.file.tensors[f].grid == grid]
        if known:  # it was dequantized from just these integers
            return replace(value, tensor=known[0])
        return replace(value, tensor=self.file.operator("QUANTIZE", [value.tensor], replace(self.file.tensors[value.tensor], dtype="int8", grid=grid, name="")))

    def plain(self, value: Value) -> Value:
        """With the program's own order of dimensions."""
        shape = value.shape
        if value.order is not None:
            c, h, w = value.order
            value = self.reshape(value, (shape[0], h, w, c), replace(value, shape=(shape[0], c, h, w), last=True, order=None))
            return self.reshape(self.plain(value), shape, Value(-1, shape))
        if not value.last:
            return value
        if len(shape) == 3:
            value = self.reshape(value, (shape[0], shape[2], shape[1]), value)
            return self.transpose(value, (0, 2, 1), shape)
        return self.transpose(value, (0, 3, 1, 2), shape)

    def channels_last(self, value: Value) -> Value:
        """As convolutions want it: ``[N, H, W, C]``."""
        if value.last:
            return value
        if len(value.shape) == 3:
            n, c, length = value.shape
            turned = self.transpose(value, (0, 2, 1), (n, length, c))
            return self.reshape(turned, (n, 1, length, c), Value(-1, value.shape, last=True))
        n, c, h, w = value.shape
        return replace(self.transpose(value, (0, 2, 3, 1), (n, h, w, c)), shape=value.shape, last=True)

    def transpose(self, value: Value, order: tuple[int, ...], shape: tuple[int, ...]) -> Value:
        before = self.file.tensors[value.tensor]
        moved = tuple(before.shape[d] for d in order)
        if [d for d in order if before.shape[d] != 1] == sorted(d for d in order if before.shape[d] != 1):
            return self.reshape(value, moved, Value(-1, shape))
        tensor = self.file.operator(
            "TRANSPOSE", [value.tensor, self.file.constant(np.array(order, np.int32))], replace(before, shape=moved, name=""), "TransposeOptions"
        )
        return Value(tensor, shape)

    def reshape(self, value: Value, stored: tuple[int, ...], result: Value) -> Value:
        """The same elements in the shape ``stored``; ``result`` says what that is to the program."""
        before = self.file.tensors[value.tensor]
        if before.shape == stored:
            return replace(result, tensor=value.tensor)
        shape = self.file.constant(np.array([-1, *stored[1:]], np.int32))
        return replace(result, tensor=self.file.operator("RESHAPE", [value.tensor, shape], replace(before, shape=stored, name=""), "ReshapeOptions"))

    # -- integers ------------------------------------------------------------------------------

    def integer_output(self, node: fx.Node) -> tuple[fx.Node, str, Grid] | None:
        """Where the node's integers go: the quantizing node, the activation fused on the way, and the grid; ``None`` if it must give floats."""
        last, fused = activation_after(node)
        users = list(last.users)
        if len(users) == 1 and users[0].target is QUANTIZE:
            return users[0], fused, grid_of(users[0])
        if fused:  # the activation's value is wanted as it is, but the node's own may be quantized
            users = list(node.users)
            if len(users) == 1 and users[0].target is QUANTIZE:
                return users[0], "", grid_of(users[0])
        return None

    def integer_input(self, node: Any) -> Value | None:
        """The integers that a node dequantizes, if that is what it does."""
        if isinstance(node, fx.Node) and node.target is DEQUANTIZE and node in self.values and self.is_integer(self.values[node]):
            return self.values[node]
        return None

    def finish(self, node: fx.Node, value: Value, fused: str, quantizer: fx.Node | None = None) -> None:
        """Record the result of an operator that took the following activation (and quantizer) along."""
        last = activation_after(node)[0] if fused else node
        for covered in (node, last, quantizer):
            if covered is not None:
                self.values[covered] = value
                self.done.add(covered)

    def float_fused(self, node: fx.Node) -> str:
        """The activation that a float operator takes along; unless its own value is an output."""
        return activation_after(node)[1]

    # -- weights -------------------------------------------------------------------------------

    def _stored(self, node: fx.Node) -> Encode | None:
        """The encoding that a decoding node decodes, or ``None`` where it decodes a value."""
        source = given(node)[0]
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return None
        stem = str(source.target).removesuffix("__values")
        found = next((e for p, e in self.program.encoded.items() if mangled(p) == stem), None)
        if found is None:
            raise LoweringError(f"{source.target} is decoded, but no plan says how it was encoded.")
        return found

    def encoding(self, node: Any) -> Encode | None:
        """How a weight argument is stored; ``None``: in float32."""
        return self._stored(node) if isinstance(node, fx.Node) and node.target in DECODE else None

    def array(self, node: fx.Node) -> np.ndarray[Any, Any]:
        """A weight or bias in float32."""
        encode = self.encoding(node)
        tensor = encode.format.decode(encode.parts) if encode is not None else self.program.parameter(str(node.target))
        return tensor.detach().float().numpy()

    def weight(self, node: fx.Node, layout: Any, axis: int, key: str = "", least: np.ndarray[Any, Any] | None = None) -> int:
        """A weight's constant as it is stored; ``layout`` reorders an array, after which its channels lie along ``axis``.

        ``least``: the smallest scale of each channel in which its bias fits. Channels of (next to) nothing have a smaller one, and are put on that.
        """
        if (node, key) in self._weights:
            return self._weights[node, key]
        encode = self.encoding(node)
        if encode is None:
            made = self.file.constant(layout(self.array(node)).astype(np.float32), str(node.target))
        else:
            grid = encode.format.grid
            if grid is None or grid.granularity == "per_group" or grid.bits not in (4, 8):
                raise UnsupportedFormat(
                    f"{encode.format.name} at {encode.parameter}: a .tflite file has no such constant.", hint="Use 8 or 4 bits per channel."
                )
            parts = encode.format.integers(encode.parts)
            scale, values = parts["scale"].reshape(-1).numpy(), layout(parts["values"].numpy())
            if least is not None:
                wider = np.maximum(scale, (least if len(scale) > 1 else least.max()).astype(scale.dtype))
                shrunk = (scale / wider).reshape([-1 if d == axis and len(scale) > 1 else 1 for d in range(values.ndim)])
                scale, values = wider, np.round(values * shrunk).astype(values.dtype)
            stored = Grid(tuple(scale.tolist()), 0, axis if len(scale) > 1 else 0)
            made = self.file.constant(values, encode.parameter, stored, bits=grid.bits)
        self._weights[node, key] = made
        return made

    def decoded(self, node: fx.Node, layout: Any, axis: int, key: str = "") -> int:
        """A weight for a float operator: decoded by an operator of its own where it is stored in integers."""
        stored = self.weight(node, layout, axis, key)
        tensor = self.file.tensors[stored]
        if tensor.grid is None:
            return stored
        place = (node, f"{key}decoded")
        if place not in self._weights:
            self._weights[place] = self.file.operator("DEQUANTIZE", [stored], Tensor(tensor.shape, free_batch=False))
        return self._weights[place]


def given(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments."""
    return node.args


def grid_of(node: fx.Node) -> Grid:
    """The signed grid of a quantizing node; an unsigned one is moved by 128, which changes no value.

    Raises:
        UnsupportedFormat: other than 8 bits.
    """
    _, scale, zero, low, high, _ = given(node)
    assert isinstance(scale, float) and isinstance(zero, int) and isinstance(low, int) and isinstance(high, int)
    if (low, high) not in ((0, 255), (-128, 127)):
        raise UnsupportedFormat(f"A value on the grid {low}..{high}: a .tflite file has 8-bit values.")
    return Grid((scale,), zero - 128 if low == 0 else zero)


def stored_shape(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """The tensor's shape in the file."""
    if not last:
        return shape
    return (shape[0], 1, shape[2], shape[1]) if len(shape) == 3 else (shape[0], *shape[2:], shape[1])


def is_size(node: fx.Node) -> bool:
    """Arithmetic on shapes, which the file has as constants."""
    import operator

    return node.target in (aten.sym_size.int, operator.add, operator.mul, operator.floordiv, operator.sub)
