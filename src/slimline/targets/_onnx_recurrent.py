"""Recurrent layers: their names, and LSTMs that multiply integers (ONNX Runtime's ``DynamicQuantizeLSTM``, which quantizes what enters while it runs)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.errors import UnsupportedFormat
from slimline.model.program import Program
from slimline.model.quantizers import mangled

if TYPE_CHECKING:
    from slimline.targets._onnx_lowering import Rewriter

WEIGHTS = (1, 2)  # the inputs that hold what enters and what recurs: [directions, 4 H, I] and [directions, 4 H, H]


def name_layers(graph: Rewriter, program: Program) -> None:
    """Name each LSTM and GRU ``WEIGHT+WEIGHT``: the exporter puts the gates into another order, under names of its own."""
    known = {_digest(p.detach().numpy()): name for name, p in program.parameters().items() if ".weight_" in f".{name}" and p.ndim == 2}
    encoded = {f"{mangled(p)}__values": p for p in program.encoded}
    for node in [n for n in graph.nodes if n.op_type in ("LSTM", "GRU")]:
        read = [i for place in WEIGHTS for i in (node.input[place], *(i for n in _ancestors(graph, node.input[place]) for i in n.input))]
        found: list[str] = []
        for name in [i for i in dict.fromkeys(read) if i in graph.initializers]:
            array = graph.array(name) if name not in encoded else np.zeros(0)
            parts = list(array) if array.ndim == 3 else [array]
            found += [encoded[name]] if name in encoded else [known[d] for d in map(_digest, parts) if d in known]
        node.name = "+".join(dict.fromkeys(found))


def _digest(values: np.ndarray[Any, Any]) -> str:
    """Of the values in whatever order."""
    return hashlib.sha256(np.sort(values, axis=None).tobytes()).hexdigest()


def dynamic_layers(graph: Rewriter, encoded: Mapping[str, Encode]) -> set[str]:
    """Realise every LSTM of which a weight is executed dynamically; the weights that this took.

    Its other weights may be stored in fewer bits, but as integers too: the kernel takes no other.

    Raises:
        UnsupportedFormat: one of them is not, or they are computed from the inputs.
    """
    taken: set[str] = set()
    for node in [n for n in graph.nodes if n.op_type == "LSTM"]:
        found = [list(_ancestors(graph, node.input[place])) for place in WEIGHTS]
        decoders = {n.input[0]: n for nodes in found for n in nodes if n.op_type == "DequantizeLinear"}
        names = [p for p in encoded if f"{mangled(p)}__values" in decoders]
        dynamic = [p for p in names if encoded[p].execute == "dynamic"]
        if not dynamic:
            continue
        formats = [f for f in (encoded[p].format for p in names) if isinstance(f, Affine) and f.granularity != "per_group"]
        others = [p for p in names if encoded[p].format not in formats]
        directions = 2 if any(a.name == "direction" and a.s == b"bidirectional" for a in node.attribute) else 1
        if others or len(names) != len(WEIGHTS) * directions:
            raise UnsupportedFormat(
                f"dynamic_int8 at {dynamic[0]}: ONNX Runtime's integer LSTM takes all weights of the layer as integers with a scale per row; "
                f"{f'{others[0]} is stored otherwise' if others else 'not all of them are integers'}.",
                hint="Give the layer's other weights dynamic_int8 or weight_only too.",
            )
        bits = max(f.bits for f in formats)
        stored = [_stored(graph, node.input[place], nodes, names, bits) for place, nodes in zip(WEIGHTS, found, strict=True)]
        inputs = [node.input[0], stored[0][0], stored[1][0], *(node.input[3:] if len(node.input) > 3 else [])]
        inputs += [""] * (8 - len(inputs))
        new = helper.make_node("DynamicQuantizeLSTM", [*inputs, *stored[0][1:], *stored[1][1:]], list(node.output), node.name, domain="com.microsoft")
        new.attribute.extend(a for a in node.attribute if a.name in ("direction", "hidden_size", "input_forget", "clip"))
        graph.before(new, node)
        graph.drop(node)
        for old in (n for nodes in found for n in nodes):
            if not any(graph.users(o) for o in old.output):
                graph.drop(old)
        taken |= set(names)
    if taken and not any(o.domain == "com.microsoft" for o in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return taken


def _ancestors(graph: Rewriter, name: str) -> Iterator[onnx.NodeProto]:
    """What computes a value, the last first."""
    waiting, seen = [name], set()
    while waiting:
        node = graph.producers.get(waiting.pop(0))
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += node.input


def _stored(graph: Rewriter, value: str, nodes: list[onnx.NodeProto], names: Sequence[str], bits: int) -> tuple[str, str, str]:
    """Names of integers ``[directions, I, 4 H]``, scales and zero points ``[directions, 4 H]``, of what the nodes make of the stored weights."""
    kinds = {n.input[0]: n for n in nodes if n.op_type == "DequantizeLinear"}
    integers = _evaluated(graph, value, nodes, {n.input[1]: np.ones_like(graph.array(n.input[1])) for n in kinds.values()})
    scales = _evaluated(graph, value, nodes, {name: np.ones_like(graph.array(name)) for name in kinds})[..., 0]
    weight = np.round(integers).astype(np.int8).transpose(0, 2, 1)
    stem = next(mangled(p) for p in names if f"{mangled(p)}__values" in kinds)  # both directions lie in it, one gives the name
    name = graph.put(f"{stem}__transposed", weight)
    if bits < 8:
        graph.pack(name, bits)
        graph.first.append(helper.make_node("Cast", [name], [f"{name}_int8"], to=TensorProto.INT8))
    read = name if bits == 8 else f"{name}_int8"
    return read, graph.put(f"{stem}__scales", scales.astype(np.float32)), graph.put(f"{stem}__zeros", np.zeros(scales.shape, np.int8))


def _evaluated(graph: Rewriter, value: str, nodes: list[onnx.NodeProto], replaced: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The value with some of the constants that it is computed from replaced."""
    ours = {id(n) for n in nodes}
    ordered = [n for n in graph.nodes if id(n) in ours]
    made = {o for n in ordered for o in n.output}
    read = dict.fromkeys(i for n in ordered for i in n.input if i and i not in made)
    if any(name not in graph.initializers for name in read):
        raise UnsupportedFormat("An LSTM whose weights are computed from the inputs has no integer kernel.", hint="Use weight_only there.")
    constants = [numpy_helper.from_array(np.ascontiguousarray(replaced[n]), n) if n in replaced else graph.initializers[n] for n in read]
    inner = helper.make_graph(ordered, "weights", [], [helper.make_empty_tensor_value_info(value)], constants)
    model = helper.make_model(inner, opset_imports=list(graph.model.opset_import), ir_version=graph.model.ir_version)
    results: Any = ReferenceEvaluator(model).run([value], {})
    found: np.ndarray[Any, Any] = results[0]
    return found
