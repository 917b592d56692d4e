"""What a reader of the file sees: no metadata, short names, nodes named after the weights that they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper

from slimline.core.samples import Samples
from slimline.core.short_names import short_names
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.targets._onnx_export import OPSET

IR_VERSION = 10  # what opset 21 came with
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "MatMulInteger", "Gather")
RECURRENT = ("LSTM", "GRU", "DynamicQuantizeLSTM")  # what consumes several weights, and has been named after all of them
VALUES = ("values", "packed", "transposed")  # what follows a weight's name where its integers are stored


def name_transposed(graph: onnx.GraphProto, program: Program) -> None:
    """Give float matrices that the exporter transposed ahead of time, under a name of its own, their parameter's name back."""
    by_content = {p.detach().numpy().T.tobytes(): name for name, p in program.parameters().items() if p.dtype == torch.float32 and p.ndim == 2}
    taken = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            continue
        name = by_content.get(numpy_helper.to_array(tensor).tobytes(), "")
        if name and name not in taken:
            taken.add(name)
            for node in graph.node:
                node.input[:] = [name if i == tensor.name else i for i in node.input]
            tensor.name = name


def tidy(model: onnx.ModelProto, weights: Sequence[str], example: Samples) -> None:
    """Strip metadata, merge equal small constants, shorten names; nodes with a weight are named after its module."""
    graph = model.graph
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        if hasattr(thing, "metadata_props"):
            del thing.metadata_props[:]
        thing.ClearField("doc_string")
    del graph.value_info[:]
    del model.functions[:]
    model.producer_name, model.producer_version = "slimline", ""
    model.ir_version = max(IR_VERSION, model.ir_version if model.opset_import[0].version > OPSET else IR_VERSION)
    for stale in [o for o in model.opset_import if o.domain not in {n.domain for n in graph.node} | {""}]:
        model.opset_import.remove(stale)
    _drop_zero_points(graph)
    _merge_constants(graph)
    _sort_constants(graph)
    _rename(model, {mangled(w): w for w in weights}, example)


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """A weight's zero points are all zero, which is what a missing input means; ONNX Runtime insists on them for Gemm and MatMul."""
    products = {i for n in graph.node if n.op_type in ("Gemm", "MatMul") for i in n.input}
    zeros = {i.name for i in graph.initializer if i.data_type == TensorProto.INT8 and i.dims and not numpy_helper.to_array(i).any()}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in zeros and node.output[0] not in products:
            del node.input[2:]
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    kept = [detached(i) for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _merge_constants(graph: onnx.GraphProto) -> None:
    seen: dict[tuple[Any, ...], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), tensor.SerializeToString() if tensor.external_data else numpy_helper.to_array(tensor).tobytes())
        same[tensor.name] = seen.setdefault(key, tensor.name)
    for node in graph.node:
        node.input[:] = [same.get(i, i) for i in node.input]
    outputs = {o.name for o in graph.output}
    kept = [detached(t) for t in graph.initializer if same[t.name] == t.name or t.name in outputs]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _sort_constants(graph: onnx.GraphProto) -> None:
    """In the order of first use: as good as any other for the runtime, and an archive need not say which comes when."""
    first = {name: place for place, name in enumerate(_uses(graph))}
    kept = [detached(t) for t in sorted(graph.initializer, key=lambda t: first.get(t.name, len(first)))]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename(model: onnx.ModelProto, stems: Mapping[str, str], example: Samples) -> None:
    graph = model.graph
    names: dict[str, str] = {"": ""}
    given = [*(["input"] if len(example.args) == 1 else [f"input_{i}" for i in range(len(example.args))]), *example.kwargs]
    names |= {value.name: name for value, name in zip(graph.input, given, strict=False)}
    names |= {value.name: "output" + (f"_{i}" if i else "") for i, value in enumerate(graph.output) if value.name not in names}
    nodes = list(graph.node)  # held, so that their ids stay
    owner = dict(_owners(nodes, graph, stems))
    taken = set(names.values())  # an input may be called "a"
    names |= short_names({n: uses for n, uses in _uses(graph).items() if n not in names}, taken)
    for node in nodes:
        node.name = owner.get(id(node), "")
        node.input[:] = [names[i] for i in node.input]
        node.output[:] = [names[o] for o in node.output]
    for thing in (*graph.initializer, *graph.input, *graph.output):
        thing.name = names[thing.name]
    batch = {v.type.tensor_type.shape.dim[0].dim_param for v in graph.input if v.type.tensor_type.shape.dim} - {""}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in batch:
                dim.dim_param = "batch"
    graph.name = "model"


def _owners(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto, stems: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Nodes that consume a weight, with the weight's name; found through what only reads constants (casts, scales, transposes).

    A weight's second consumer is ``WEIGHT@2`` and so on: node names are unique. A recurrent layer is named ``WEIGHT+WEIGHT``.
    """
    carries: dict[str, str] = {}
    constant = {tensor.name for tensor in graph.initializer}
    seen: dict[str, int] = {}
    for tensor in graph.initializer:
        stem, _, part = tensor.name.rpartition("__")
        if stem in stems and part in VALUES:
            carries[tensor.name] = stems[stem]
        elif tensor.name in stems.values() or tensor.name.rpartition(".")[2].startswith("weight"):
            carries[tensor.name] = tensor.name
    for node in nodes:
        found = [node.name] if node.op_type in RECURRENT and node.name else [carries[i] for i in node.input if i in carries]
        if found and node.op_type in (*WEIGHTED, *RECURRENT):
            seen[found[0]] = seen.get(found[0], 0) + 1
            yield id(node), found[0] if seen[found[0]] == 1 else f"{found[0]}@{seen[found[0]]}"
        elif all(i in constant for i in node.input if i):
            constant |= set(node.output)
            carries |= dict.fromkeys(node.output, found[0]) if found else {}


def _uses(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each value is written, in the order of first use."""
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input, *node.output):
            uses[name] = uses.get(name, 0) + 1
    return uses


def detached(message: Any) -> Any:
    """A copy that does not point into the graph it came from."""
    new = type(message)()
    new.CopyFrom(message)
    return new
