"""What PyTorch's exporter makes of a program, before anything is rewritten."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator
from typing import Any

import onnx
import torch

from slimline.core.samples import Samples
from slimline.errors import LoweringError
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.model.trace import in_one_step, quiet, where
from slimline.targets._onnx_template import exported

aten = torch.ops.aten
SAME = {  # what Python's operators are called in a graph, and what the decomposition would call them
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__and__.Scalar: aten.bitwise_and.Scalar,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Scalar,
    aten.item.default: aten._local_scalar_dense.default,
}
OPSET = 21  # the first with 4-bit integers
_registries: dict[int, Any] = {}


def export(program: Program, example: Samples) -> onnx.ModelProto:
    """The exporter's own graph."""
    two = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
    batch = torch.export.Dim.AUTO
    names = [str(n.target) for n in program.graph.nodes if n.op == "placeholder"]
    shapes: Any = tuple({0: batch} for _ in two.args) if not two.kwargs else None
    if two.kwargs:
        shapes = {**{n: {0: batch} for n in names[: len(two.args)]}, **{k: {0: batch} for k in two.kwargs}}

    direct = True

    def made(module: torch.fx.GraphModule) -> onnx.ModelProto:
        nonlocal direct
        if direct:
            try:
                return _export(module, two, shapes, direct=True)
            except LoweringError:
                direct = False  # for the same graph with other numbers, too
        return _export(module, two, shapes, direct=False)

    return exported(with_batches_cut(program, with_stand_ins(program)), two, made)


def _export(module: torch.fx.GraphModule, example: Samples, shapes: Any, *, direct: bool) -> onnx.ModelProto:
    """``direct``: without decomposing first, which takes half the time, but translates fewer operations."""
    try:
        with quiet(), in_one_step(), _one_registry(), torch.no_grad():
            traced = torch.export.export(module, example.args, dict(example.kwargs), dynamic_shapes=shapes, strict=False)
            if direct:
                skip_decomposition(traced)
            onnx_program = torch.onnx.export(traced, dynamo=True, opset_version=OPSET, optimize=True, verbose=False)
    except Exception as error:  # the exporters raise dozens of types; each means that this graph cannot be lowered
        raise LoweringError(f"The model cannot be lowered to ONNX: {where(error)}{_root(error)}.") from error
    assert onnx_program is not None
    model: onnx.ModelProto = onnx_program.model_proto
    cast_zero_points(model.graph)
    return model


def cast_zero_points(graph: onnx.GraphProto) -> None:
    """Zero points of wide tables as integers of 8 bits: the exporter folds no cast of more than a few thousand numbers."""
    arrays = {t.name: t for t in graph.initializer}
    wanted = {n.input[2] for n in graph.node if n.op_type == "DequantizeLinear" and len(n.input) == 3}
    for node in [n for n in graph.node if n.op_type == "Cast" and n.output[0] in wanted and n.input[0] in arrays]:
        kind = onnx.helper.tensor_dtype_to_np_dtype(next(a.i for a in node.attribute if a.name == "to"))
        graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(arrays[node.input[0]]).astype(kind), node.output[0]))
        graph.node.remove(node)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """The exporter's translations, read once: it parses the source of all five hundred at every call, which takes a second. A PyTorch that keeps them elsewhere takes that second."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        own = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return

    def kept(opset_version: int = OPSET) -> ONNXRegistry:
        if opset_version not in _registries:
            _registries[opset_version] = own(opset_version)
        found: ONNXRegistry = _registries[opset_version]
        return found

    setattr(ONNXRegistry, "from_torchlib", staticmethod(kept))  # noqa: B010  (for as long as we export)
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", own)  # noqa: B010


def _root(error: BaseException) -> str:
    """The first line of the error that began it: the exporter wraps what it means in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}".rstrip(".")


def with_stand_ins(program: Program) -> torch.fx.GraphModule:
    """The module; a copy where weights are decoded by groups, which the exporter has no translation for, or are floats that the file stores as less.

    There one scale per row, or integers of no meaning, stand in, so that the decoding can be found again; ``realise`` takes the encoding's own parts.
    """
    ops = torch.ops.quantized_decomposed
    floats = {f"{mangled(p)}__values" for p, e in program.encoded.items() if e.format.grid is None}
    if not floats and not any(n.target is ops.dequantize_per_channel_group.default for n in program.graph.nodes):
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
    draw = torch.Generator().manual_seed(0)  # equal stand-ins would be merged
    for node in [n for n in module.graph.nodes if n.op == "get_attr" and n.target in floats]:
        shape = module.get_buffer(str(node.target)).shape
        module.register_buffer(str(node.target), torch.randint(-127, 128, shape, dtype=torch.int8, generator=draw))
        with module.graph.inserting_after(node):
            new = module.graph.call_function(ops.dequantize_per_tensor.default, (node, 1.0, 0, -128, 127, torch.int8))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def with_batches_cut(program: Program, module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The module; a copy where the batch dimension is cut into equal chunks (of images that went through a network together, as in RAFT).

    onnxscript 0.7.2 fails on a chunk whose size is not known before the program runs: a reshape and picks stand in.
    """

    def cut(node: torch.fx.Node) -> bool:
        if node.target is not aten.chunk.default or (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)) != 0:
            return False
        source, count = node.args[0], node.args[1]
        assert isinstance(source, torch.fx.Node) and isinstance(count, int)
        return program.shapes[source.name][0] % count == 0 and all(u.target is operator.getitem for u in node.users)

    if not any(cut(n) for n in module.graph.nodes):
        return module
    module = copy.deepcopy(module)
    for node in [n for n in module.graph.nodes if cut(n)]:
        source, count = node.args[0], node.args[1]
        with module.graph.inserting_before(node):
            parts = module.graph.call_function(aten.unflatten.int, (source, 0, [count, -1]))
        for user in list(node.users):
            with module.graph.inserting_before(user):
                picked = module.graph.call_function(aten.select.int, (parts, 0, user.args[1]))
            user.replace_all_uses_with(picked)
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.recompile()
    return module


def work_out_of_place(graph: torch.fx.Graph) -> None:
    """Let operations that work in place give a value of their own where nothing could tell: all else that reads what they change has read it before, and is no view of it."""
    places = {node: place for place, node in enumerate(graph.nodes)}

    def made_new(node: Any) -> bool:
        return isinstance(node, torch.fx.Node) and isinstance(node.target, torch._ops.OpOverload) and not any(r.alias_info for r in node.target._schema.returns)

    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        namespace, _, name = node.target._schema.name.partition("::")
        packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
        plain = getattr(packet, node.target._overloadname, None)
        changed: Any = node.args[0] if node.args else None
        if plain is None or plain is node.target:
            continue
        nothing = node.target is aten.dropout_.default and not node.args[2]
        if nothing or (made_new(changed) and all(u is node or (places[u] < places[node] and made_new(u)) for u in changed.users)):
            node.target = plain


def skip_decomposition(exported: torch.export.ExportedProgram) -> None:
    """Let ``exported`` through the exporter as it is, if none of its operations has to be decomposed.

    The exporter decomposes what it has no translation for by tracing the whole graph again, which is half of
    all lowering time. Where the graph holds nothing of that kind, and nothing that works in place (which tracing
    would make functional; ``work_out_of_place`` comes first), the second trace changes nothing. The ``&`` of masks, in every transformer of Hugging Face's, goes by its other name.
    """
    for node in exported.graph.nodes:
        node.target = SAME.get(node.target, node.target)
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:  # the decomposition does the same
            node.target, node.args = aten.mean.dim, (node.args[0], [-1, -2], True)
    work_out_of_place(exported.graph)
    again = exported.run_decompositions

    def run_decompositions(table: Any = None, **options: Any) -> torch.export.ExportedProgram:
        targets = {n.target for n in exported.graph.nodes if n.op == "call_function"}
        plain = all(not isinstance(t, torch._ops.OpOverload) or not (t._schema.is_mutable or t in table) for t in targets) if table is not None else False
        nested = any(n.op == "get_attr" for n in exported.graph.nodes)  # a branch or loop with a graph of its own
        return exported if plain and not nested else again(table, **options)

    setattr(exported, "run_decompositions", run_decompositions)  # noqa: B010  (a method of this one object)
