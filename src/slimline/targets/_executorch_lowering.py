"""From a frozen program to a .pte file whose layers XNNPACK runs as the plan says."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import fx

from slimline.core.edits import Encode
from slimline.core.samples import Samples
from slimline.errors import LoweringError, ModelError
from slimline.model.operations import PADS, RECURRENT, weight_arguments
from slimline.model.program import Program
from slimline.model.quantizers import mangled
from slimline.model.trace import quiet, trace
from slimline.targets._executorch_file import OUTSIDE, File
from slimline.targets._torch_lowering import drop_unread

aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
GRIDS = frozenset({decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default})
DECODERS = frozenset({decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default, decomposed.dequantize_per_channel_group.default})
MOST = 16  # samples at once: buffers are planned for so many. PyTorch takes the bound one lower where a layer is just so wide
SHAPED = frozenset({aten.view.default, aten.reshape.default})


def lower(program: Program, example: Samples) -> bytes:
    """The file's content.

    Raises:
        LoweringError: the program cannot be exported again, or ExecuTorch gave up; the message names the operation.
    """
    for use in program.weights.values():
        if use.op in ("conv3d", "conv_transpose3d"):
            raise LoweringError(f"{use.op} (the weight {use.parameter}): ExecuTorch has no kernel for it.", hint="Use the onnxruntime target for this model.")
    with quiet():
        import executorch.exir.passes  # noqa: F401 - defines what gathers integer embeddings

    module = program.copy().module
    signed(module)
    for encode in program.encoded.values():
        realise(module, encode)
    settled(module)
    padded(module)
    drop_unread(module)
    floating = [f"{mangled(name)}__values" for name, e in program.encoded.items() if e.execute == "float" and not e.format.whole]
    try:
        with quiet():
            exported = trace(module, example, most=MOST)
            content = _lowered(exported, frozenset(n for n, b in exported.graph_signature.inputs_to_buffers.items() if b in floating))
    except ModelError as error:
        raise LoweringError(error.message, hint=error.hint) from error
    except Exception as error:  # its passes raise whatever they meet
        raise LoweringError(f"ExecuTorch cannot lower the program: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}") from error
    file = File.of(content)
    file.inputs = tuple(str(n) for n in exported.graph_signature.user_inputs)
    name_weights(file, program)
    return file.pack()


def _lowered(exported: torch.export.ExportedProgram, floating: frozenset[str]) -> bytes:
    """``floating``: the inputs of the graph that are integer weights for float kernels."""
    import executorch.kernels.quantized  # noqa: F401 - registers what reads integer embeddings
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    from slimline.targets import _executorch_partition

    partitioner = XnnpackPartitioner(configs=_executorch_partition.configs(floating))
    edge = to_edge_transform_and_lower(exported, partitioner=[partitioner], compile_config=EdgeCompileConfig(_check_ir_validity=False))
    plan = MemoryPlanningPass(alloc_graph_input=False)
    return bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan)).buffer)


def signed(module: fx.GraphModule) -> None:
    """Values on unsigned grids move to signed ones, which is what XNNPACK's kernels take; no value changes."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in GRIDS and node.args[-1] is torch.uint8:
            given, scale, zero, low, high, _ = node.args
            node.args = (given, scale, zero - 128, low - 128, high - 128, torch.int8)
    module.recompile()


def realise(module: fx.GraphModule, encode: Encode) -> None:
    """Bring a stored weight's decoding, and what surrounds the layer, into the form that a kernel is there for.

    Dynamic layers find their input's range on every call; so do those with a scale for each group, which have no other kernel.
    Embeddings gather integers. A float layer adds its bias apart, since XNNPACK's float kernels with integer weights are asked for without one.
    """
    graph, values = module.graph, f"{mangled(encode.parameter)}__values"
    decoders = {n for n in graph.nodes if n.op == "call_function" and any(a.op == "get_attr" and a.target == values for a in n.all_input_nodes)}
    for decoder in decoders:
        if decoder.target is decomposed.dequantize_per_channel_group.default:
            scale = decoder.args[1]
            module.register_buffer(f"{values}_zeros", torch.zeros(_tensor(module, scale).shape, dtype=torch.int32))
            with graph.inserting_before(decoder):
                decoder.update_arg(2, graph.get_attr(f"{values}_zeros"))
    for node in [n for n in graph.nodes if n.target not in RECURRENT and any(weight in decoders for _, weight, _ in weight_arguments(n))]:
        if node.target is aten.embedding.default:
            _gathered(module, node, encode)
        elif encode.execute == "dynamic" or node.args[1].target is decomposed.dequantize_per_channel_group.default:
            _ranged(graph, node)
        elif encode.execute == "float" and node.target is aten.linear.default and len(node.args) > 2 and node.args[2] is not None:
            _without_bias(graph, node)
    graph.eliminate_dead_code()
    module.recompile()


def _tensor(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    value = getattr(module, str(node.target))
    assert isinstance(value, torch.Tensor)
    return value


def _ranged(graph: fx.Graph, node: fx.Node) -> None:
    given, least = node.args[0], torch.finfo(torch.float32).eps
    with graph.inserting_before(node):
        found = graph.call_function(decomposed.choose_qparams.tensor, (given, -128, 127, least, torch.int8))
        scale, zero = (graph.call_function(operator.getitem, (found, place)) for place in (0, 1))
        quantized = graph.call_function(decomposed.quantize_per_tensor.tensor, (given, scale, zero, -128, 127, torch.int8))
        back = graph.call_function(decomposed.dequantize_per_tensor.tensor, (quantized, scale, zero, -128, 127, torch.int8))
    node.update_arg(0, back)


def _without_bias(graph: fx.Graph, node: fx.Node) -> None:
    given, weight, bias = node.args
    with graph.inserting_before(node):
        product = graph.call_function(aten.linear.default, (given, weight))
        total = graph.call_function(aten.add.Tensor, (product, bias))
    for new in (product, total):
        new.meta = dict(node.meta)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _gathered(module: fx.GraphModule, node: fx.Node, encode: Encode) -> None:
    """An embedding whose rows stay integers until they are asked for."""
    grid = encode.format.grid
    assert grid is not None
    decoder = node.args[0]
    assert isinstance(decoder, fx.Node)
    values, scale = decoder.args[0], decoder.args[1]
    assert isinstance(values, fx.Node)
    name = f"{values.target}_rows"
    stored = _tensor(module, values)
    module.register_buffer(name, torch.from_numpy(rows(stored.numpy(), grid.bits)) if grid.bits < 8 else stored)
    gather = {8: "embedding_byte", 4: "embedding_4bit", 2: "embedding_2bit"}[grid.bits]
    with module.graph.inserting_before(node):
        weight = module.graph.get_attr(name)
        low = -(2 ** (grid.bits - 1))
        new = module.graph.call_function(getattr(decomposed, gather).default, (weight, scale, None, low, -low - 1, node.args[1]))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def rows(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Rows of an embedding as its kernel reads them: moved to be unsigned; of 4 bits the first stands in the upper half of a byte, of 2 in the lowest.

    Example:
        >>> rows(np.array([[-8, 7]], np.int8), 4).tolist(), rows(np.array([[-2, -1, 0, 1]], np.int8), 2).tolist()
        ([[15]], [[228]])
    """
    per = 8 // bits
    raised = (values + 2 ** (bits - 1)).astype(np.uint8).reshape(len(values), -1, per)
    made = np.zeros(raised.shape[:2], np.uint8)
    for place in range(per):
        made |= raised[:, :, place] << (bits * (per - 1 - place if bits == 4 else place))
    return made


def settled(module: fx.GraphModule) -> None:
    """Shapes that take the batch from their input say -1 there, and means over images keep the two dimensions until after: so the delegate can take them."""
    graph = module.graph
    for node in graph.nodes:
        if node.op == "call_function" and node.target in SHAPED:
            shape = list(node.args[1])
            if sum(isinstance(d, fx.Node) for d in shape) == 1 and all(isinstance(d, fx.Node) or d > 0 for d in shape):
                node.update_arg(1, [-1 if isinstance(d, fx.Node) else d for d in shape])
        elif node.op == "call_function" and node.target is aten.mean.dim and not (len(node.args) > 2 and node.args[2]):
            value = node.args[0].meta.get("val")
            if value is not None and value.ndim == 4 and {d % 4 for d in node.args[1]} == {2, 3} and isinstance(value.shape[1], int):
                node.args = (node.args[0], [2, 3], True)
                with graph.inserting_after(node):
                    flat = graph.call_function(aten.view.default, (node, [-1, value.shape[1]]))
                flat.meta = dict(node.meta)
                node.replace_all_uses_with(flat, delete_user_cb=lambda user, new=flat: user is not new)
        elif node.op == "call_function" and node.target is aten.flatten.using_ints:
            value = node.args[0].meta.get("val")
            start = node.args[1] if len(node.args) > 1 else 0
            end = node.args[2] if len(node.args) > 2 else -1
            if value is not None and start == 1 and end in (-1, value.ndim - 1) and all(isinstance(d, int) for d in value.shape[1:]):
                node.target = aten.view.default
                node.args = (node.args[0], [-1, math.prod(value.shape[1:])])
    graph.eliminate_dead_code()
    module.recompile()


def padded(module: fx.GraphModule) -> None:
    """A dequantized value that is padded with zeros for a float layer stands on the same grid afterwards, which changes none: XNNPACK otherwise takes whatever reads
    it for quantized, and refuses a float weight there. Integer layers read the padding as it is."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in PADS or not all(v in ("constant", None, 0) for v in node.args[2:]):
            continue
        source = node.args[0]
        floating = [u for u in node.users if not any(isinstance(a, fx.Node) and a.target in DECODERS for a in u.args[1:])]
        if not floating or source.target is not decomposed.dequantize_per_tensor.default:
            continue
        with graph.inserting_after(node):
            own = graph.node_copy(node)
        with graph.inserting_after(own):
            stored = graph.call_function(decomposed.quantize_per_tensor.default, (own, *source.args[1:]))
        with graph.inserting_after(stored):
            back = graph.call_function(decomposed.dequantize_per_tensor.default, (stored, *source.args[1:]))
        back.meta = dict(node.meta)
        for user in floating:
            user.replace_input_with(node, back)
    graph.eliminate_dead_code()
    module.recompile()


def name_weights(file: File, program: Program) -> None:
    """Which parameter each layer takes, found by its content: in the delegates, and among the kernels of the program itself. Equal ones go by their order."""
    known: dict[str, list[str]] = {}
    for name, each in _contents(program):
        for array in each:
            known.setdefault(_digest(array), []).append(name)

    def owner(content: np.ndarray[Any, Any]) -> str:
        names = known.get(_digest(content), [""])
        return names.pop(0) if len(names) > 1 else names[0]

    for delegate, place in file.layers():
        graph = file.graphs[delegate]
        value = graph.nodes[place]["xnode_union"]["filter_id"]
        kind = {"fp32": np.float32, "qcint4": np.uint8, "qbint4": np.uint8}.get(graph.dtype(value), np.int8)
        file.weights[delegate, place] = owner(np.frombuffer(graph.constant(value), kind))
    for place, content in file.kernel_constants():
        if name := owner(content):
            file.weights[OUTSIDE, place] = name


def _contents(program: Program) -> Iterator[tuple[str, tuple[np.ndarray[Any, Any], ...]]]:
    """Each weight in the forms in which a file may hold it, but for the order of its elements."""
    for name in (*program.weights, *program.encoded):
        encode = program.encoded.get(name)
        if encode is None:
            yield name, (program.parameter(name).detach().numpy(),)
        elif encode.format.grid is None:
            yield name, (encode.format.decode(encode.parts).numpy(),)
        else:
            values, bits = encode.format.integers(encode.parts)["values"].numpy(), encode.format.grid.bits
            packed = ((nibbles(values),) if bits == 4 and values.ndim == 2 else ()) + (
                (rows(values, bits),) if bits < 8 and values.shape[-1] % (8 // bits) == 0 else ()
            )
            yield name, packed or (values,)


def nibbles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Integers of 4 bits as XNNPACK packs them: moved by 8, two to a byte along the inputs, the first in the lower half.

    Example:
        >>> nibbles(np.array([[-8, 7, 0]], np.int8)).tolist()
        [[240, 136]]
    """
    raised = (np.pad(values, ((0, 0), (0, values.shape[1] % 2))) + 8).astype(np.uint8)
    return raised[:, ::2] | (raised[:, 1::2] << 4)


def _digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.sort(values, axis=None).tobytes()).hexdigest()
