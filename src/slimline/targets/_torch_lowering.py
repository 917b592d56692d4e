"""From a frozen program to the bytes of a ``.pt2`` file: weights packed, nothing in it that is not computed with."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import torch
from torch import fx

from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.errors import LoweringError, ModelError
from slimline.model.program import Program
from slimline.model.quantizers import mangled, owner_of
from slimline.model.trace import quiet, trace

KEPT = ("val", "tensor_meta")  # of a node's metadata; stack traces and module stacks are a third of a small file


def lower(program: Program, example: Samples) -> bytes:
    """The file's content.

    Raises:
        LoweringError: the program cannot be exported again, or saved.
    """
    module = program.copy().module
    for parameter, encode in program.encoded.items():
        if isinstance(encode.format, Affine):
            store(module, parameter, encode.format.bits)
    without_zeros(module)
    drop_unread(module)
    stream = io.BytesIO()
    try:
        with quiet():
            exported = trace(module, example)
            for node in exported.graph.nodes:
                node.meta = {k: v for k, v in node.meta.items() if k in KEPT}
            exported._example_inputs = None
            torch.export.save(exported, stream)
    except ModelError as error:
        raise LoweringError(error.message, hint=error.hint) from error
    except Exception as error:  # the serialiser raises whatever it meets
        raise LoweringError(f"The program cannot be saved: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}") from error
    return deflated(stream.getvalue())


def deflated(archive: bytes) -> bytes:
    """The same archive with its descriptions of the graph compressed: PyTorch stores them as they are, ten times as large."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as given, zipfile.ZipFile(made, "w") as new:
        for entry in given.infolist():
            info = zipfile.ZipInfo(entry.filename)  # with the format's first date: the same program gives the same bytes
            info.compress_type = zipfile.ZIP_DEFLATED if entry.filename.endswith(".json") else zipfile.ZIP_STORED
            new.writestr(info, given.read(entry))
    return made.getvalue()


def store(module: fx.GraphModule, parameter: str, bits: int) -> None:
    """Move a weight's integers to where its float twin was (``conv.weight__values``), packed if they have fewer than 8 bits."""
    home, stem, leaf = owner_of(module, parameter), mangled(parameter), parameter.rpartition(".")[2]
    for part in ("values", "scale"):
        old = f"{stem}__{part}"
        if not hasattr(module, old):
            continue
        value = getattr(module, old)
        readers = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == old]
        delattr(module, old)
        home.register_buffer(f"{leaf}__{part}", pack(value, bits) if part == "values" and bits < 8 else value)
        for node in readers:
            node.target = f"{parameter}__{part}"
            if part == "values" and bits < 8:
                _unpacked(module.graph, node, bits, tuple(value.shape))
    module.graph.lint()
    module.recompile()


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers of ``bits`` bits, ``8 / bits`` to a byte, the first in the lowest bits; the last byte is filled with zeros.

    Example:
        >>> pack(torch.tensor([-7, 7, 1], dtype=torch.int8), 4).tolist()
        [241, 9]
    """
    per = 8 // bits
    flat = (values.flatten().to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % per)).reshape(-1, per)
    packed = flat[:, 0].clone()
    for place in range(1, per):
        packed |= flat[:, place] << (bits * place)
    return packed


def _unpacked(graph: fx.Graph, node: fx.Node, bits: int, shape: tuple[int, ...]) -> None:
    """Put the operations that unpack it behind a packed buffer."""
    aten, per, count = torch.ops.aten, 8 // bits, math.prod(shape)
    users = list(node.users)
    last: Any = node

    def then(target: Any, *args: Any) -> fx.Node:
        with graph.inserting_after(last):
            return graph.call_function(target, args)

    pieces = []
    for place in range(per):
        last = then(aten.bitwise_right_shift.Tensor_Scalar, node, bits * place)
        last = then(aten.bitwise_and.Scalar, last, 2**bits - 1)
        pieces.append(last)
    last = then(aten.stack.default, pieces, 1)
    steps: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (aten.view.default, ([-1],)),
        (aten.slice.Tensor, (0, 0, count)),
        (aten.view.default, (list(shape),)),
        (aten.to.dtype, (torch.int8,)),
        (aten.sub.Scalar, (2 ** (bits - 1),)),
    )
    for target, args in steps:
        last = then(target, last, *args)
    for user in users:
        user.replace_input_with(node, last)


def without_zeros(module: fx.GraphModule) -> None:
    """Weights are symmetric: their zero points are all zero, which is what leaving them out means."""
    for node in module.graph.nodes:
        if node.target is torch.ops.quantized_decomposed.dequantize_per_channel.default:
            node.update_arg(2, None)
    module.graph.eliminate_dead_code()
    module.recompile()


def drop_unread(module: fx.GraphModule) -> None:
    """Parameters and buffers that no node reads are no part of the program (folded norms leave theirs)."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)) if n not in read]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
