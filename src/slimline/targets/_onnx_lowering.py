"""From a frozen program to the bytes of an ONNX file that ONNX Runtime executes as the plan says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.errors import LoweringError, UnsupportedFormat
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.model.trace import quiet, where

OPSET = 21  # the first with 4-bit integers
OPSET_INT2 = 25
IR_VERSION, IR_VERSION_INT2 = 10, 13
PACKED = {4: (TensorProto.INT4, "int4"), 2: (TensorProto.INT2, "int2")}
GROUPS = (16, 32, 64, 128, 256)  # block sizes that MatMulNBits takes
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "MatMulInteger", "LSTM", "GRU", "DynamicQuantizeLSTM", "Gather")
VALUES = ("values", "packed", "transposed")  # what follows a weight's name where its integers are stored


def lower(program: Program, example: Samples) -> onnx.ModelProto:
    """Export, then realise each encoded weight and strip what is no part of the computation.

    Raises:
        LoweringError: the exporter gave up; the message names the line or the operation.
    """
    model = export(program, example)
    graph = Rewriter(model)
    for parameter, encode in program.encoded.items():
        realise(graph, parameter, encode)
    graph.finish()
    name_transposed(model.graph, program)
    tidy(model, tuple(program.encoded), example)
    return model


def export(program: Program, example: Samples) -> onnx.ModelProto:
    """The exporter's own graph, metadata removed."""
    two = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
    batch = torch.export.Dim.AUTO
    names = [str(n.target) for n in program.graph.nodes if n.op == "placeholder"]
    shapes: Any = tuple({0: batch} for _ in two.args) if not two.kwargs else None
    if two.kwargs:
        shapes = {**{n: {0: batch} for n in names[: len(two.args)]}, **{k: {0: batch} for k in two.kwargs}}
    module = without_groups(program)
    failure: Exception | None = None
    for direct in (True, False):  # decomposing first takes twice as long, but translates more operations
        try:
            with quiet(), torch.no_grad():
                exported = torch.export.export(module, two.args, dict(two.kwargs), dynamic_shapes=shapes, strict=False)
                if direct:
                    skip_decomposition(exported)
                onnx_program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
        except Exception as error:  # the exporters raise dozens of types; each means that this graph cannot be lowered that way
            failure = error
            continue
        assert onnx_program is not None
        model: onnx.ModelProto = onnx_program.model_proto
        return model
    assert failure is not None
    raise LoweringError(f"The model cannot be lowered to ONNX: {where(failure)}{_root(failure)}.") from failure


def without_groups(program: Program) -> torch.fx.GraphModule:
    """The module; a copy where weights are decoded by groups, which the exporter has no translation for.

    There one scale per row stands in, so that the decoding can be found again; ``realise`` takes the groups' own scales.
    """
    ops = torch.ops.quantized_decomposed
    if not any(n.target is ops.dequantize_per_channel_group.default for n in program.graph.nodes):
        return program.module
    module = program.copy().module
    for node in [n for n in module.graph.nodes if n.target is ops.dequantize_per_channel_group.default]:
        values, low, high, dtype = node.args[0], node.args[3], node.args[4], node.args[5]
        rows = module.get_buffer(str(values.target)).shape[0]
        stem = str(values.target).removesuffix("__values")
        module.register_buffer(f"{stem}__scale", torch.ones(rows))
        module.register_buffer(f"{stem}__zero", torch.zeros(rows, dtype=torch.int64))
        with module.graph.inserting_before(node):
            scale, zero = (module.graph.get_attr(f"{stem}__{part}") for part in ("scale", "zero"))
            new = module.graph.call_function(ops.dequantize_per_channel.default, (values, scale, zero, 0, low, high, dtype))
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _root(error: BaseException) -> str:
    """The first line of the error that began it: the exporter wraps what it means in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}".rstrip(".")


def skip_decomposition(exported: torch.export.ExportedProgram) -> None:
    """Let ``exported`` through the exporter as it is, if none of its operations has to be decomposed.

    The exporter decomposes what it has no translation for by tracing the whole graph again, which is half of
    all lowering time. Where the graph holds nothing of that kind, and nothing that works in place (which tracing
    would make functional), the second trace changes nothing.
    """
    again = exported.run_decompositions

    def run_decompositions(table: Any = None, **options: Any) -> torch.export.ExportedProgram:
        targets = {n.target for n in exported.graph.nodes if n.op == "call_function"}
        plain = all(not isinstance(t, torch._ops.OpOverload) or not (t._schema.is_mutable or t in table) for t in targets) if table is not None else False
        nested = any(n.op == "get_attr" for n in exported.graph.nodes)  # a branch or loop with a graph of its own
        return exported if plain and not nested else again(table, **options)

    exported.run_decompositions = run_decompositions  # type: ignore[method-assign]


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


@dataclass
class Rewriter:
    """An ONNX graph with look-ups, and the changes that wait for ``finish``."""

    model: onnx.ModelProto
    leading: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    trailing: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    first: list[onnx.NodeProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph = self.model.graph
        self.nodes = list(self.graph.node)  # held: protobuf makes a new wrapper, with a new id, for one that nobody holds
        self.initializers = {i.name: i for i in self.graph.initializer}
        self.producers = {o: n for n in self.nodes for o in n.output}

    def users(self, name: str) -> list[onnx.NodeProto]:
        return [n for n in self.nodes if name in n.input and id(n) not in self.dropped]

    def array(self, name: str) -> np.ndarray[Any, Any]:
        return numpy_helper.to_array(self.initializers[name])

    def put(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """A new initializer."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.initializers[name] = tensor
        return name

    def before(self, node: onnx.NodeProto, anchor: onnx.NodeProto) -> None:
        self.leading.setdefault(id(anchor), []).append(node)

    def after(self, node: onnx.NodeProto, anchor: onnx.NodeProto) -> None:
        self.trailing.setdefault(id(anchor), []).append(node)

    def drop(self, node: onnx.NodeProto) -> None:
        self.dropped.add(id(node))

    def finish(self) -> None:
        """Write the changes back: nodes in order, only initializers that something reads."""
        nodes = list(self.first)
        for node in self.nodes:
            nodes += self.leading.get(id(node), [])
            if id(node) not in self.dropped:
                nodes.append(node)
            nodes += self.trailing.get(id(node), [])
        read = {i for n in nodes for i in n.input} | {o.name for o in self.graph.output}
        used = [t for name, t in self.initializers.items() if name in read]
        nodes = [helper_copy(n) for n in nodes]
        used = [helper_copy(t) for t in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(used)


def helper_copy(message: Any) -> Any:
    """A copy that does not point into the graph it came from."""
    new = type(message)()
    new.CopyFrom(message)
    return new


def realise(graph: Rewriter, parameter: str, encode: Encode) -> None:
    """Turn the decoding of one weight into the form that ONNX Runtime executes as ``encode`` says."""
    stem = mangled(parameter)
    values = f"{stem}__values"
    if values not in graph.initializers:
        raise LoweringError(f"The weight {parameter} is not in the exported graph under {values}.")
    decoders = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and n.input[0] == values]
    if not decoders or not isinstance(encode.format, Affine):
        raise LoweringError(f"The weight {parameter} ({encode.format.name}) has no decoding in the exported graph.")
    for decoder in decoders:
        if encode.execute == "integer":
            _integer(graph, stem, decoder, encode.format)
        elif encode.execute == "dynamic":
            _dynamic(graph, parameter, stem, decoder)
        else:
            _decoded(graph, stem, decoder, encode.format, encode.parts["scale"].numpy())


def _stored(graph: Rewriter, stem: str, bits: int, to: int) -> str:
    """Name of the weight as ``to`` (INT8 or FLOAT), stored in ``bits``; the runtime folds the cast when it loads."""
    name = f"{stem}__values"
    if bits == 8 and to == TensorProto.INT8:
        return name
    cast = f"{stem}__{'int8' if to == TensorProto.INT8 else 'float'}"
    if cast not in {o for n in graph.first for o in n.output}:
        if bits < 8:
            import ml_dtypes

            values = graph.array(name)
            if values.dtype == np.int8:
                graph.initializers[name] = numpy_helper.from_array(values.astype(getattr(ml_dtypes, PACKED[bits][1])), name)
                if bits == 2:
                    graph.model.opset_import[0].version, graph.model.ir_version = OPSET_INT2, IR_VERSION_INT2
        graph.first.append(helper.make_node("Cast", [name], [cast], to=to))
    return cast


def _integer(graph: Rewriter, stem: str, decoder: onnx.NodeProto, format: Affine) -> None:
    """QuantizeLinear / DequantizeLinear around an int8 weight; below 8 bits the stored integers are cast to int8."""
    scale = graph.array(decoder.input[1]).astype(np.float32)
    graph.put(decoder.input[1], scale)
    users = graph.users(decoder.output[0])
    if len(users) == 1 and users[0].op_type == "Transpose" and scale.ndim == 1 and len(graph.initializers[f"{stem}__values"].dims) == 2:
        # x Wᵀ on more than two dimensions: ONNX Runtime only fuses a weight that lies as the product reads it.
        transpose = users[0]
        graph.put(f"{stem}__values", graph.array(f"{stem}__values").T)
        _set_axis(decoder, 1 - format.axis)
        decoder.output[0] = transpose.output[0]
        graph.drop(transpose)
    for user in users:
        if user.op_type == "Gemm":
            _integer_bias(graph, stem, user, scale)
    decoder.input[0] = _stored(graph, stem, format.bits, TensorProto.INT8)


def _set_axis(decoder: onnx.NodeProto, axis: int) -> None:
    del decoder.attribute[:]
    decoder.attribute.append(helper.make_attribute("axis", axis))


def _integer_bias(graph: Rewriter, stem: str, gemm: onnx.NodeProto, scale: np.ndarray[Any, Any]) -> None:
    """ONNX Runtime 1.32 fuses a Gemm with a float output only if its bias is int32 at the scale of the product."""
    source = graph.producers.get(gemm.input[0])
    if len(gemm.input) < 3 or gemm.input[2] not in graph.initializers or source is None or source.op_type != "DequantizeLinear":
        return
    step = (graph.array(source.input[1]).astype(np.float32) * scale).astype(np.float32)
    bias = graph.array(gemm.input[2])
    step = np.broadcast_to(step, bias.shape)
    integers = np.clip(np.round(bias / step), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    values, scales, decoded = f"{stem}__bias", f"{stem}__bias_scale", f"{stem}__bias_float"
    graph.put(values, integers)
    graph.put(scales, step)
    graph.before(helper.make_node("DequantizeLinear", [values, scales], [decoded], axis=0), gemm)
    gemm.input[2] = decoded


def _decoded(graph: Rewriter, stem: str, decoder: onnx.NodeProto, format: Affine, scale: np.ndarray[Any, Any]) -> None:
    """Weight-only: integers in the file, float in the kernel.

    ``Cast`` and ``Mul`` are folded once when the session is made; a ``DequantizeLinear`` would run on every call.
    """
    users = graph.users(decoder.output[0])
    if format.granularity == "per_group" and all(_n_bits(graph, stem, decoder, user, format, scale) for user in users):
        graph.drop(decoder)
        return
    values = graph.array(f"{stem}__values")
    if format.granularity == "per_group":  # values [..., in] with scales [..., in / group]
        grouped = (*values.shape[:-1], values.shape[-1] // format.group, format.group)
        shape = graph.put(f"{stem}__grouped", np.array(grouped, np.int64))
        flat = graph.put(f"{stem}__shape", np.array(values.shape, np.int64))
        cast = _stored(graph, stem, format.bits, TensorProto.FLOAT)
        groups = graph.put(f"{stem}__groups", scale[..., None])
        graph.first += [
            helper.make_node("Reshape", [cast, shape], [f"{stem}__cut"]),
            helper.make_node("Mul", [f"{stem}__cut", groups], [f"{stem}__product"]),
            helper.make_node("Reshape", [f"{stem}__product", flat], [decoder.output[0]]),
        ]
        graph.drop(decoder)
        return
    gathers = [u for u in users if u.op_type == "Gather" and u.input[0] == decoder.output[0]]
    spread = scale.reshape([-1 if d == format.axis else 1 for d in range(values.ndim)]) if scale.ndim else scale
    for gather in gathers:  # rows are picked as integers and scaled after: the table is never decoded whole
        _gathered(graph, stem, gather, spread, format)
    if len(gathers) < len(users):
        cast = _stored(graph, stem, format.bits, TensorProto.FLOAT)
        name = graph.put(f"{stem}__spread", spread)
        graph.first.append(helper.make_node("Mul", [cast, name], [decoder.output[0]]))
    graph.drop(decoder)


def _gathered(graph: Rewriter, stem: str, gather: onnx.NodeProto, spread: np.ndarray[Any, Any], format: Affine) -> None:
    values = f"{stem}__values" if format.bits == 8 else _stored(graph, stem, format.bits, TensorProto.INT8)
    out = gather.output[0]
    gather.input[0] = values
    gather.output[0] = f"{out}__rows"
    graph.after(helper.make_node("Cast", [f"{out}__rows"], [f"{out}__float"], to=TensorProto.FLOAT), gather)
    name = graph.put(f"{stem}__spread", spread)
    if spread.ndim and format.axis == 0 and spread.shape[0] > 1:
        graph.after(helper.make_node("Gather", [name, gather.input[1]], [f"{out}__scale"], axis=0), gather)
        name = f"{out}__scale"
    graph.after(helper.make_node("Mul", [f"{out}__float", name], [out]), gather)


def _linear_user(graph: Rewriter, decoder: onnx.NodeProto, user: onnx.NodeProto) -> tuple[str, str | None, onnx.NodeProto | None] | None:
    """``(activation, bias, transpose)`` if ``user`` computes ``x Wᵀ`` (+ bias) with the decoded ``W [out, in]``."""
    attributes = {a.name: helper.get_attribute_value(a) for a in user.attribute}
    if user.op_type == "Gemm" and user.input[1] == decoder.output[0] and attributes.get("transB") and not attributes.get("transA"):
        return user.input[0], user.input[2] if len(user.input) > 2 else None, None
    if user.op_type == "Transpose":
        after = graph.users(user.output[0])
        if len(after) == 1 and after[0].op_type == "MatMul" and after[0].input[1] == user.output[0]:
            return after[0].input[0], None, user
    return None


def _n_bits(graph: Rewriter, stem: str, decoder: onnx.NodeProto, user: onnx.NodeProto, format: Affine, scale: np.ndarray[Any, Any]) -> bool:
    """Realise a linear layer as MatMulNBits; whether that was possible."""
    found = _linear_user(graph, decoder, user)
    if found is None or format.bits not in (4, 8) or format.group not in GROUPS:
        return False
    activation, bias, transpose = found
    product = graph.users(transpose.output[0])[0] if transpose is not None else user
    values = graph.array(f"{stem}__values").astype(np.int16)
    n, k = values.shape
    unsigned = (values + 2 ** (format.bits - 1)).astype(np.uint8).reshape(n, k // format.group, format.group)
    packed = unsigned if format.bits == 8 else unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
    inputs = [activation, graph.put(f"{stem}__packed", packed), graph.put(f"{stem}__blocks", scale.reshape(-1))]
    if bias is not None:
        inputs += ["", "", bias]
    new = helper.make_node("MatMulNBits", inputs, [product.output[0]], domain="com.microsoft", K=k, N=n, bits=format.bits, block_size=format.group, accuracy_level=4)
    new.name = product.name
    graph.before(new, product)
    graph.drop(product)
    if transpose is not None:
        graph.drop(transpose)
    if not any(o.domain == "com.microsoft" for o in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return True


def _dynamic(graph: Rewriter, parameter: str, stem: str, decoder: onnx.NodeProto) -> None:
    """A linear layer whose input is quantized when it runs; ONNX Runtime fuses the four nodes."""
    for user in graph.users(decoder.output[0]):
        found = _linear_user(graph, decoder, user)
        if found is None:
            raise UnsupportedFormat(f"dynamic_int8 at {parameter}: {user.op_type} has no dynamically quantized kernel in ONNX Runtime.", hint="Use weight_only there.")
        activation, bias, transpose = found
        product = graph.users(transpose.output[0])[0] if transpose is not None else user
        out = product.output[0]
        graph.put(f"{stem}__transposed", graph.array(f"{stem}__values").T)
        scale = graph.put(f"{stem}__scale_row", graph.array(decoder.input[1]).astype(np.float32))
        quantized, dynamic, zero = f"{out}__q", f"{out}__s", f"{out}__z"
        steps = [
            helper.make_node("DynamicQuantizeLinear", [activation], [quantized, dynamic, zero]),
            helper.make_node("MatMulInteger", [quantized, f"{stem}__transposed", zero], [f"{out}__sum"], name=product.name),
            helper.make_node("Cast", [f"{out}__sum"], [f"{out}__float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [dynamic, scale], [f"{out}__scale"]),
            helper.make_node("Mul", [f"{out}__float", f"{out}__scale"], [out if bias is None else f"{out}__product"]),
        ]
        if bias is not None:
            steps.append(helper.make_node("Add", [f"{out}__product", bias], [out]))
        for step in steps:
            graph.before(step, product)
        graph.drop(product)
        if transpose is not None:
            graph.drop(transpose)
    graph.drop(decoder)


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
    _rename(model, {mangled(w): w for w in weights}, example)


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """A weight's zero points are all zero, which is what a missing input means; ONNX Runtime insists on them for Gemm and MatMul."""
    products = {i for n in graph.node if n.op_type in ("Gemm", "MatMul") for i in n.input}
    zeros = {i.name for i in graph.initializer if i.data_type == TensorProto.INT8 and i.dims and not numpy_helper.to_array(i).any()}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in zeros and node.output[0] not in products:
            del node.input[2:]
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    kept = [helper_copy(i) for i in graph.initializer if i.name in read]
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
    kept = [helper_copy(t) for t in graph.initializer if same[t.name] == t.name or t.name in outputs]
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
    for place, name in enumerate(_all_names(graph)):
        names.setdefault(name, _base36(place))
    for node in nodes:
        node.name = owner.get(id(node), "")
        node.input[:] = [names[i] for i in node.input]
        node.output[:] = [names[o] for o in node.output]
    for thing in (*graph.initializer, *graph.input, *graph.output):
        thing.name = names[thing.name]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "batch" if dim is value.type.tensor_type.shape.dim[0] or dim.dim_param == graph.input[0].type.tensor_type.shape.dim[0].dim_param else dim.dim_param
    graph.name = "model"


def _owners(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto, stems: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Nodes that consume a weight, with the weight's name; found through what only reads constants (casts, scales, transposes).

    A weight's second consumer is ``WEIGHT@2`` and so on: node names are unique.
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
        found = [carries[i] for i in node.input if i in carries]
        if found and node.op_type in WEIGHTED:
            seen[found[0]] = seen.get(found[0], 0) + 1
            yield id(node), found[0] if seen[found[0]] == 1 else f"{found[0]}@{seen[found[0]]}"
        elif all(i in constant for i in node.input if i):
            constant |= set(node.output)
            carries |= dict.fromkeys(node.output, found[0]) if found else {}


def _all_names(graph: onnx.GraphProto) -> list[str]:
    uses: dict[str, int] = {}
    for node in graph.node:
        for name in (*node.input, *node.output):
            uses[name] = uses.get(name, 0) + 1
    return sorted(uses, key=lambda n: (-uses[n], n))  # what is written most often gets the shortest name


def _base36(number: int) -> str:
    digits = "abcdefghijklmnopqrstuvwxyz0123456789"
    text = digits[number % 26]
    number //= 26
    while number:
        text += digits[number % 36]
        number //= 36
    return text


