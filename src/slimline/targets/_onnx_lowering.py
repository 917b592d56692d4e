"""From a frozen program to the bytes of an ONNX file that ONNX Runtime executes as the plan says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Format
from slimline.core.samples import Samples
from slimline.errors import LoweringError, UnsupportedFormat
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.targets._onnx_compact import declare, dense
from slimline.targets._onnx_export import export
from slimline.targets._onnx_names import detached, name_transposed, tidy
from slimline.targets._onnx_picks import pick_ahead
from slimline.targets._onnx_recurrent import dynamic_layers, name_layers

OPSET_INT2, IR_VERSION_INT2 = 25, 13
PACKED = {4: "int4", 2: "int2"}
GROUPS = (16, 32, 64, 128, 256)  # block sizes that MatMulNBits takes


def lower(program: Program, example: Samples, *, integer_biases: bool = True) -> onnx.ModelProto:
    """Export, then realise each encoded weight and strip what is no part of the computation.

    ``integer_biases``: those of integer Gemms too, which ONNX Runtime wants.

    Raises:
        LoweringError: the exporter gave up; the message names the line or the operation.
    """
    model = export(program, example)
    graph = Rewriter(model, integer_biases)
    name_layers(graph, program)
    together = dynamic_layers(graph, program.encoded)
    for parameter, encode in ((p, e) for p, e in program.encoded.items() if p not in together):
        realise(graph, parameter, encode)
    keep_float(graph)
    pool_integers(graph)
    graph.finish()
    pick_ahead(model.graph)
    name_transposed(model.graph, program)
    tidy(model, tuple(program.encoded), example)
    declare(model)
    return model


@dataclass
class Rewriter:
    """An ONNX graph with look-ups, and the changes that wait for ``finish``."""

    model: onnx.ModelProto
    integer_biases: bool = True
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

    def pack(self, name: str, bits: int) -> None:
        """Store an int8 initializer in fewer bits."""
        import ml_dtypes

        values = self.array(name)
        if values.dtype == np.int8:
            self.initializers[name] = numpy_helper.from_array(values.astype(getattr(ml_dtypes, PACKED[bits])), name)
            if bits == 2:
                self.model.opset_import[0].version, self.model.ir_version = OPSET_INT2, IR_VERSION_INT2

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
        nodes = [detached(n) for n in nodes]
        used = [detached(t) for t in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(used)


def keep_float(graph: Rewriter) -> None:
    """Keep layers in float that the plan left in float between integer ones.

    ONNX Runtime's ``WeightBiasQuantization`` rounds their weights to 8 bits per tensor when it loads the file, which on a depthwise layer of
    EfficientNet-Lite0 cost more than all other layers together. It looks for a ``DequantizeLinear`` right before them: a clip to all of float32 stands between.
    """
    least = "float32_min"
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or id(node) in graph.dropped:
            continue
        weight, source = graph.producers.get(node.input[1]), graph.producers.get(node.input[0])
        if weight is not None and weight.op_type == "DequantizeLinear" and id(weight) not in graph.dropped:
            continue
        if source is not None and source.op_type == "DequantizeLinear":
            graph.put(least, np.array(np.finfo(np.float32).min, np.float32))
            graph.before(helper.make_node("Clip", [node.input[0], least], [f"{node.output[0]}__float"]), node)
            node.input[0] = f"{node.output[0]}__float"


def pool_integers(graph: Rewriter) -> None:
    """Means of whole images between integers as global pooling: ONNX Runtime has an integer kernel of that, and of the mean none."""
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.graph.value_info}
    for node in graph.nodes:
        if node.op_type != "ReduceMean" or id(node) in graph.dropped or len(node.input) < 2 or node.input[1] not in graph.initializers:
            continue
        source, users = graph.producers.get(node.input[0]), graph.users(node.output[0])
        integers = source is not None and source.op_type == "DequantizeLinear" and [u.op_type for u in users] == ["QuantizeLinear"]
        rank = ranks.get(node.input[0], 0)
        if not integers or rank < 3 or sorted(int(a) % rank for a in graph.array(node.input[1])) != list(range(2, rank)):
            continue
        kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        pooled = node.output[0] if kept else f"{node.output[0]}__pooled"
        graph.before(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]), node)
        if not kept:  # its grid before it is flat: the kernel gives integers
            graph.before(helper.make_node("QuantizeLinear", [pooled, *users[0].input[1:]], [f"{pooled}_values"], axis=1), node)
            graph.before(helper.make_node("DequantizeLinear", [f"{pooled}_values", *users[0].input[1:]], [f"{pooled}_again"], axis=1), node)
            graph.before(helper.make_node("Flatten", [f"{pooled}_again"], [node.output[0]]), node)
        graph.drop(node)


def realise(graph: Rewriter, parameter: str, encode: Encode) -> None:
    """Turn the decoding of one weight into the form that ONNX Runtime executes as ``encode`` says."""
    stem = mangled(parameter)
    values = f"{stem}__values"
    if values not in graph.initializers:
        raise LoweringError(f"The weight {parameter} is not in the exported graph under {values}.")
    decoders = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and n.input[0] == values]
    if not decoders:
        raise LoweringError(f"The weight {parameter} ({encode.format.name}) has no decoding in the exported graph.")
    for decoder in decoders:
        if encode.execute == "integer":
            _integer(graph, stem, decoder, encode)
        elif encode.execute == "dynamic":
            _dynamic(graph, parameter, stem, decoder, encode)
        elif encode.format.grid is None:
            _floats(graph, stem, decoder, encode)
        else:
            _decoded(graph, stem, decoder, encode)


def _stored(graph: Rewriter, stem: str, encode: Encode, to: int, *, transposed: bool = False) -> str:
    """Name of the weight as ``to`` (INT8 or FLOAT), however it is stored; the runtime folds what brings it there when it loads."""
    name, format = f"{stem}__values", encode.format
    if not isinstance(format, Affine):
        return dense(graph, stem, encode, to, transposed=transposed)
    if to == TensorProto.INT8:
        return _as_int8(graph, name, format)
    cast = f"{stem}__float"
    if cast not in {o for n in graph.first for o in n.output}:
        if format.bits < 8:
            graph.pack(name, format.bits)
        graph.first.append(helper.make_node("Cast", [name], [cast], to=to))
    return cast


def _as_int8(graph: Rewriter, name: str, format: Format) -> str:
    """An initializer as int8, stored in the format's bits."""
    if not isinstance(format, Affine) or format.bits == 8:
        return name
    cast = f"{name.removesuffix('__values')}__int8"
    if cast not in {o for n in graph.first for o in n.output}:
        graph.pack(name, format.bits)
        graph.first.append(helper.make_node("Cast", [name], [cast], to=TensorProto.INT8))
    return cast


def _integer(graph: Rewriter, stem: str, decoder: onnx.NodeProto, encode: Encode) -> None:
    """QuantizeLinear / DequantizeLinear around an int8 weight; what is stored in less than 8 bits is brought there first."""
    grid = encode.format.grid
    assert grid is not None
    scale = _of_zeros(graph.array(decoder.input[1]).astype(np.float32), graph.array(f"{stem}__values"), grid.axis)
    graph.put(decoder.input[1], scale)
    users = graph.users(decoder.output[0])
    transposed = len(users) == 1 and users[0].op_type == "Transpose" and scale.ndim == 1 and len(graph.initializers[f"{stem}__values"].dims) == 2
    if transposed:  # x Wᵀ on more than two dimensions: ONNX Runtime only fuses a weight that lies as the product reads it.
        transpose = users[0]
        graph.put(f"{stem}__values", graph.array(f"{stem}__values").T)
        _set_axis(decoder, 1 - grid.axis)
        decoder.output[0] = transpose.output[0]
        graph.drop(transpose)
    for user in users:
        if user.op_type == "Gemm" and graph.integer_biases:
            _integer_bias(graph, stem, user, scale)
    decoder.input[0] = _stored(graph, stem, encode, TensorProto.INT8, transposed=transposed)


def _of_zeros(scale: np.ndarray[Any, Any], values: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Scales in which a channel of zeros has the largest instead of next to none, in which its bias could not be told as an integer."""
    if scale.ndim != 1:
        return scale
    dead = ~np.moveaxis(values, axis, 0).reshape(len(scale), -1).any(1)
    return np.where(dead, scale.max() if not dead.all() else np.float32(1.0), scale).astype(np.float32)


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
    integers = np.clip(np.round(bias.astype(np.float64) / step), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    values, scales, decoded = f"{stem}__bias", f"{stem}__bias_scale", f"{stem}__bias_float"
    graph.put(values, integers)
    graph.put(scales, step)
    graph.before(helper.make_node("DequantizeLinear", [values, scales], [decoded], axis=0), gemm)
    gemm.input[2] = decoded


def _floats(graph: Rewriter, stem: str, decoder: onnx.NodeProto, encode: Encode) -> None:
    """Float entries or float kept values: nothing to scale."""
    found = _stored(graph, stem, encode, TensorProto.FLOAT)
    for user in graph.users(decoder.output[0]):
        user.input[:] = [found if i == decoder.output[0] else i for i in user.input]
    graph.drop(decoder)


def _decoded(graph: Rewriter, stem: str, decoder: onnx.NodeProto, encode: Encode) -> None:
    """Weight-only: integers in the file, float in the kernel.

    ``Cast`` and ``Mul`` are folded once when the session is made; a ``DequantizeLinear`` would run on every call.
    """
    format, scale = encode.format.grid, encode.parts["scale"].numpy()
    assert format is not None
    users = graph.users(decoder.output[0])
    if format.granularity == "per_group" and all(_n_bits(graph, stem, decoder, user, format, scale) for user in users):
        graph.drop(decoder)
        return
    values = graph.array(f"{stem}__values")
    if format.granularity == "per_group":  # values [..., in] with scales [..., in / group]
        grouped = (*values.shape[:-1], values.shape[-1] // format.group, format.group)
        shape = graph.put(f"{stem}__grouped", np.array(grouped, np.int64))
        flat = graph.put(f"{stem}__shape", np.array(values.shape, np.int64))
        cast = _stored(graph, stem, encode, TensorProto.FLOAT)
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
        _gathered(graph, stem, gather, spread, encode)
    if len(gathers) < len(users):
        cast = _stored(graph, stem, encode, TensorProto.FLOAT)
        name = graph.put(f"{stem}__spread", spread)
        graph.first.append(helper.make_node("Mul", [cast, name], [decoder.output[0]]))
    graph.drop(decoder)


def _gathered(graph: Rewriter, stem: str, gather: onnx.NodeProto, spread: np.ndarray[Any, Any], encode: Encode) -> None:
    values, grid = _stored(graph, stem, encode, TensorProto.INT8), encode.format.grid
    out = gather.output[0]
    gather.input[0] = values
    gather.output[0] = f"{out}__rows"
    graph.after(helper.make_node("Cast", [f"{out}__rows"], [f"{out}__float"], to=TensorProto.FLOAT), gather)
    name = graph.put(f"{stem}__spread", spread)
    if spread.ndim and grid is not None and grid.axis == 0 and spread.shape[0] > 1:
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
    new = helper.make_node(
        "MatMulNBits", inputs, [product.output[0]], domain="com.microsoft", K=k, N=n, bits=format.bits, block_size=format.group, accuracy_level=4
    )
    new.name = product.name
    graph.before(new, product)
    graph.drop(product)
    if transpose is not None:
        graph.drop(transpose)
    if not any(o.domain == "com.microsoft" for o in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return True


def _dynamic(graph: Rewriter, parameter: str, stem: str, decoder: onnx.NodeProto, encode: Encode) -> None:
    """A linear layer whose input is quantized when it runs; ONNX Runtime fuses the four nodes. What is stored in less than 8 bits is widened when it loads."""
    values = f"{stem}__transposed"
    if values not in graph.initializers:
        graph.put(values, graph.array(f"{stem}__values").T)
    for user in graph.users(decoder.output[0]):
        found = _linear_user(graph, decoder, user)
        if found is None:
            raise UnsupportedFormat(
                f"dynamic_int8 at {parameter}: {user.op_type} has no dynamically quantized kernel in ONNX Runtime.", hint="Use weight_only there."
            )
        activation, bias, transpose = found
        product = graph.users(transpose.output[0])[0] if transpose is not None else user
        out = product.output[0]
        scale = graph.put(f"{stem}__scale_row", graph.array(decoder.input[1]).astype(np.float32))
        quantized, dynamic, zero = f"{out}__q", f"{out}__s", f"{out}__z"
        steps = [
            helper.make_node("DynamicQuantizeLinear", [activation], [quantized, dynamic, zero]),
            helper.make_node("MatMulInteger", [quantized, _as_int8(graph, values, encode.format), zero], [f"{out}__sum"], name=product.name),
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
