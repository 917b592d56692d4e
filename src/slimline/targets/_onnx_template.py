"""One export for all programs of the same graph: their tensors and scales are put into a copy of what the exporter made of the first.

PyTorch's exporter traces for seconds what differs from the last candidate in its numbers alone. A graph is exported once
with stand-ins, all of them different, so that each can be found again in the ONNX graph by what it holds; and a program with the same operations gets its own
tensors in their places. Where a stand-in cannot be found again (it was folded into something else), there is no template, and the exporter is asked every time.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import fx

from slimline.core.samples import Samples
from slimline.model.trace import quiet

aten, quantized = torch.ops.aten, torch.ops.quantized_decomposed
KEPT = 16  # templates
LARGE = 1 << 29  # bytes of tensors: making a template holds them four times more
SCALED = (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default)
ANY_WIDTH = frozenset(  # what the exporter translates without writing down a size of its input
    (
        aten.conv1d.default,
        aten.conv2d.default,
        aten.linear.default,
        aten.relu.default,
        aten.relu_.default,
        aten.hardtanh.default,
        aten.hardtanh_.default,
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
        aten.dropout.default,
        *SCALED,
        quantized.dequantize_per_channel.default,
    )
)
Export = Callable[[fx.GraphModule], onnx.ModelProto]
Key = tuple[Any, ...]
_templates: OrderedDict[Key, Template] = OrderedDict()
_hopeless: OrderedDict[Key, None] = OrderedDict()  # operations of graphs whose stand-ins were lost: the next width of them is exported once, not twice


@dataclass(frozen=True)
class Template:
    """An exported graph whose initializers are empty where ``tensors`` (initializer: name in the module, transposed or not) and ``scales`` (node: its number in the module) say what belongs there."""

    model: onnx.ModelProto
    tensors: Mapping[str, tuple[str, bool]]
    scales: Mapping[int, int]
    zeros: Mapping[int, str]

    def filled(self, module: fx.GraphModule) -> onnx.ModelProto:
        """With the tensors and scales of ``module``."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for tensor in graph.initializer:
            if tensor.name in self.tensors:
                name, transposed = self.tensors[tensor.name]
                array = _array(_tensor(module, name))
                arrays[tensor.name] = np.ascontiguousarray(array.T if transposed else array)
                tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
        nodes = [n for n in module.graph.nodes if n.target in SCALED]
        kinds = {t.name: t.data_type for t in graph.initializer}
        for place, number in self.scales.items():
            node, (scale, zero) = graph.node[place], nodes[number].args[1:3]
            names = [f"{node.output[0]}__scale", f"{node.output[0]}__zero_point"]
            graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), names[0]))
            graph.initializer.append(numpy_helper.from_array(np.array(zero, onnx.helper.tensor_dtype_to_np_dtype(kinds[node.input[2]])), names[1]))
            node.input[1:3] = names
        for place, values in self.zeros.items():
            node = graph.node[place]
            name = f"{node.output[0]}__zero_point"
            graph.initializer.append(numpy_helper.from_array(np.zeros(arrays[values].shape, np.int8), name))
            node.input[2] = name
        return model


def exported(module: fx.GraphModule, example: Samples, export: Export) -> onnx.ModelProto:
    """What ``export`` makes of ``module``, or as good as that."""
    operations = tuple((n.op, "" if n.op == "get_attr" else str(n.target)) for n in module.graph.nodes)
    if operations in _hopeless or sum(t.nbytes for t in (*module.parameters(), *module.buffers())) > LARGE:
        return export(module)
    key = _key(module, example)
    template = _templates[key] if key in _templates else _template(module, export)
    if template is None:
        _keep(_hopeless, operations, None)
        return export(module)
    _keep(_templates, key, template)
    return template.filled(module)


def _keep(kept: OrderedDict[Key, Any], key: Key, value: Any) -> None:
    """The latest ``KEPT``."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > KEPT:
        kept.popitem(last=False)


def _key(module: fx.GraphModule, example: Samples) -> Key:
    """All that the exporter's graph depends on but for what a template leaves open."""
    numbers = {node: i for i, node in enumerate(module.graph.nodes)}
    same: dict[tuple[object, ...], int] = {}
    any_width = fits_any_width(module)
    parts: list[Any] = [tuple((t.dtype, tuple(t.shape[1:])) for t in example.tensors), min(len(example), 2)]
    for node in module.graph.nodes:
        args = node.args
        if node.target in SCALED:
            args = (args[0], same.setdefault((args[1], args[2]), len(same)), *args[3:])
        elif node.target is quantized.dequantize_per_channel.default:  # its range is not written down
            args = (*args[:4], *args[6:])
        about: Any = None
        if node.op == "get_attr":
            tensor = _tensor(module, str(node.target))
            shape = tensor.ndim if any_width else tuple(tensor.shape)
            if _is_open(str(node.target), tensor):
                about = str(node.target), tensor.dtype, shape
            else:
                about = ("zeros", shape) if _is_zeros(tensor) else (str(node.target), *_content(_array(tensor)))
        parts.append(
            (
                node.op,
                "" if node.op == "get_attr" else str(node.target),
                about,
                repr(fx.map_arg(args, lambda n: f"%{numbers[n]}")),
                repr(fx.map_arg(node.kwargs, lambda n: f"%{numbers[n]}")),
            )
        )
    return tuple(parts)


def fits_any_width(module: fx.GraphModule) -> bool:
    """Whether the exporter writes no width down that the template cannot leave open."""
    return all(n.op != "call_function" or n.target in ANY_WIDTH or _flattens(n) for n in module.graph.nodes)


def _flattens(node: fx.Node) -> bool:
    """All but the batch into one dimension."""
    return node.target is aten.flatten.using_ints and node.args[1:] in ((1,), (1, -1))


def _is_open(name: str, tensor: torch.Tensor) -> bool:
    """Whether any other values may stand there."""
    return tensor.dtype == torch.float32 or (name.endswith("__values") and tensor.dtype == torch.int8)


def _is_zeros(tensor: torch.Tensor) -> bool:
    """Zero points of weights."""
    return tensor.dtype == torch.int64 and tensor.ndim == 1 and not tensor.any()


def _template(module: fx.GraphModule, export: Export) -> Template | None:
    """``None`` where not every stand-in is found in what ``export`` made of them."""
    with quiet():
        marked = copy.deepcopy(module)
    draw = torch.Generator().manual_seed(0)
    names = dict.fromkeys(str(n.target) for n in marked.graph.nodes if n.op == "get_attr")
    wanted: dict[tuple[Any, ...], tuple[str, bool]] = {}
    for name in names:
        tensor = _tensor(marked, name)
        if _is_open(name, tensor):
            random = (
                torch.rand if tensor.dtype == torch.float32 else lambda shape, generator: torch.randint(-100, 101, shape, dtype=torch.int8, generator=generator)
            )
            with torch.no_grad():
                tensor.copy_(random(tensor.shape, generator=draw))
            array = _array(tensor)
            if array.ndim == 2:
                wanted[_content(array.T)] = name, True
            wanted[_content(array)] = name, False
    same: dict[tuple[object, ...], int] = {}
    places: dict[float, int] = {}
    for number, node in enumerate(n for n in marked.graph.nodes if n.target in SCALED):
        stand_in = 1.0 + same.setdefault(node.args[1:3], len(same)) / 4096
        places.setdefault(stand_in, number)
        node.args = (node.args[0], stand_in, *node.args[2:])
    marked.recompile()
    model = export(marked)
    if fits_any_width(module):
        _open_flattening(model.graph)
    return _read(model, wanted, places, {n for n in names if _is_open(n, _tensor(marked, n))})


def _read(model: onnx.ModelProto, wanted: Mapping[tuple[Any, ...], tuple[str, bool]], places: Mapping[float, int], names: set[str]) -> Template | None:
    """Where the stand-ins are; they are taken out of ``model``."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tensors = {name: wanted[content] for name, array in arrays.items() if (content := _content(array)) in wanted}
    scales: dict[int, int] = {}
    zeros: dict[int, str] = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = arrays.get(node.input[1])
        if scale is not None and scale.ndim == 0 and float(scale) in places and len(node.input) == 3 and node.input[2] in arrays:
            scales[place] = places[float(scale)]
        elif (
            node.input[1] in tensors
            and len(node.input) == 3
            and arrays.get(node.input[2], np.ones(1)).ndim == 1
            and not arrays.get(node.input[2], np.ones(1)).any()
        ):
            zeros[place] = node.input[1]
        else:
            return None
    folded = [n for n, a in arrays.items() if n not in tensors and a.size > 1 and a.dtype.kind == "f"]
    if folded or names - {name for name, _ in tensors.values()} or set(scales.values()) != set(places.values()):
        return None
    kept = {name for place in scales for name in model.graph.node[place].input[2:3]}
    for tensor in model.graph.initializer:
        if tensor.name in tensors and tensor.name not in kept:
            tensor.ClearField("raw_data")
    return Template(model, tensors, scales, zeros)


def _open_flattening(graph: onnx.GraphProto) -> None:
    """``Reshape`` to (as it is, width), which flattening became, to (as it is, the rest)."""
    shapes = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and len(to := numpy_helper.to_array(shapes[node.input[1]])) == 2 and to[0] in (0, -1):
            shapes[node.input[1]].CopyFrom(numpy_helper.from_array(np.array([0, -1], np.int64), node.input[1]))
            del node.attribute[:]  # with which zero would mean zero


def _content(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """What tells arrays apart: not their bytes, which of a large model would be held three times."""
    return array.dtype.str, array.shape, hashlib.blake2b(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, digest_size=16).digest()


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return found


def _tensor(module: fx.GraphModule, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, torch.Tensor)
    return value
