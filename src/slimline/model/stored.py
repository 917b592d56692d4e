"""The stored form as a file: what a plan came to, before any runtime; and what of it another runtime can take."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import fx, nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Format, format_of
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.errors import ModelError
from slimline.model.operations import weight_arguments
from slimline.model.program import Program
from slimline.model.quantizers import mangled, owner_of
from slimline.model.trace import quiet, trace

ABOUT = "encoded.json"
Executes = Callable[[Format, Op, str], bool]


def save(program: Program, example: Samples) -> bytes:
    """The stored form with its example; the parts of its weights are in ``plan.safetensors`` too."""
    about = {name: {"format": e.format.model_dump(), "execute": e.execute} for name, e in program.encoded.items()}  # type: ignore[attr-defined]  # every format that reaches the disk is Data
    stream = io.BytesIO()
    with quiet():
        torch.export.save(trace(program.module, example), stream, extra_files={ABOUT: json.dumps(about)})
    return stream.getvalue()


def load(content: bytes, parts: Mapping[str, torch.Tensor]) -> Program:
    """What ``save`` wrote. ``parts``: the content of ``plan.safetensors``.

    Raises:
        ModelError: the file is not one.
    """
    extra = {ABOUT: ""}
    try:
        with quiet():
            exported = torch.export.load(io.BytesIO(content), extra_files=extra)
        about = json.loads(extra[ABOUT])
        assert exported.example_inputs is not None
        example = Samples(tuple(exported.example_inputs[0]), dict(exported.example_inputs[1]))
    except Exception as error:  # the loader raises whatever its parts raise
        raise ModelError(f"The stored program cannot be read: {(str(error).splitlines() or [''])[0][:300]}", hint="Compress again.") from error
    program = Program.opened(exported, example)
    program.form = "stored"
    program.encoded = MappingProxyType(
        {
            name: Encode(name, format_of(e["format"]), {k.rpartition("/")[2]: t for k, t in parts.items() if k.startswith(f"parts/{name}/")}, e["execute"])
            for name, e in about.items()
        }
    )
    return program


def adapted(program: Program, executes: Executes) -> tuple[Program, tuple[str, ...]]:
    """A copy in which every weight is in a format that ``executes`` allows, and a sentence for each that had to change.

    No value changes: fewer bits are kept in more; where no integers are executed they are decoded when the model runs; where not even that,
    the weight becomes float32.
    """
    new = program.copy()
    ops = dict(operations_of(new))
    encoded: dict[str, Encode] = {}
    said: list[str] = []
    for name, encode in program.encoded.items():
        op = ops[name]
        taken = next((e for e in _alternatives(encode) if executes(e.format, op, e.execute)), None)
        if taken is None:
            _decode(new, encode)
            said.append(f"{name} ({op}): {encode.format.name}, {encode.execute}, becomes float32")
            continue
        encoded[name] = taken
        if taken is not encode:
            said.append(f"{name} ({op}): {encode.format.name}, {encode.execute}, becomes {taken.format.name}, {taken.execute}")
    new.encoded = MappingProxyType(encoded)
    return new, tuple(said)


def _alternatives(encode: Encode) -> Iterator[Encode]:
    """The same integers in the same bits or more, in integers if they were, else decoded first."""
    for execute in dict.fromkeys((encode.execute, "float")):
        if not isinstance(encode.format, Affine):
            yield encode if execute == encode.execute else replace(encode, execute=execute)
            continue
        for bits in (b for b in (2, 4, 8) if b >= encode.format.bits):
            same = bits == encode.format.bits and execute == encode.execute
            yield encode if same else Encode(encode.parameter, encode.format.model_copy(update={"bits": bits}), encode.parts, execute)


def _decoders(program: Program, parameter: str) -> list[fx.Node]:
    values = f"{mangled(parameter)}__values"
    return [n for n in program.graph.nodes if n.op == "call_function" and any(a.op == "get_attr" and a.target == values for a in n.all_input_nodes)]


def operations_of(program: Program) -> Iterator[tuple[str, Op]]:
    """Each stored weight and the operation that consumes it."""
    consumers = {weight.name: op for node in program.graph.nodes for op, weight, _ in weight_arguments(node)}
    for parameter in program.encoded:
        yield parameter, next(consumers[n.name] for n in _decoders(program, parameter) if n.name in consumers)


def _decode(program: Program, encode: Encode) -> None:
    """The weight in float32, under its own name."""
    module, graph = program.module, program.graph
    owner_of(module, encode.parameter).register_parameter(encode.parameter.rpartition(".")[2], nn.Parameter(encode.format.decode(encode.parts)))
    for node in _decoders(program, encode.parameter):
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(encode.parameter))
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
