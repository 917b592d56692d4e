"""A .pte file: read, packed tightly, and written again."""

from __future__ import annotations

import importlib.resources
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slimline.errors import LoweringError
from slimline.model.trace import quiet
from slimline.targets._executorch_runner import MARK, described

XNNPACK = "XnnpackBackend"
HEADER = 32  # bytes of a graph's header, filled up
ALIGNMENT = 16
LAYERS = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d", "XNNFullyConnected")
BITS = {
    "fp32": 32,
    "fp16": 16,
    "bf16": 16,
    "qint8": 8,
    "quint8": 8,
    "qint32": 32,
    "qcint8": 8,
    "qcint32": 32,
    "qcint4": 4,
    "qbint4": 4,
    "qdint8": 8,
    "int32": 32,
}
INFINITE = re.compile(r"(:\s*)(-?inf)\b")  # which flatc writes bare and reads as a string
OUTSIDE = -1  # in place of a delegate: the program's own kernels
DTYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 6: "float32", 7: "float64", 11: "bool"}  # by the number that a file has for them
INTEGER = ("qint8", "quint8", "qdint8")


@dataclass
class Graph:
    """What one delegate runs: XNNPACK's own graph, as its schema has it, and its constants."""

    description: dict[str, Any]
    constants: bytes
    named: dict[str, bytes] = field(default_factory=dict)

    @property
    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.description["xnodes"]
        return found

    @cached_property
    def values(self) -> dict[int, dict[str, Any]]:
        """The tensor of each value, with its ``quant_params`` where it has any."""
        found = {}
        for value in self.description["xvalues"]:
            union = value["xvalue_union"]
            tensor = {**union["tensor_value"], "quant": union["quant_params"]} if value["xvalue_union_type"] == "XNNQuantizedTensorValue" else union
            found[tensor["id_out"]] = tensor
        return found

    def dtype(self, value: int) -> str:
        """``fp32``, ``qint8``, ``qcint4``..."""
        return str(self.values[value]["datatype"]).removeprefix("xnn_datatype_")

    @cached_property
    def batch(self) -> int:
        """The batch that the shapes in the file are written for."""
        return int(self.values[self.description["output_ids"][0]]["dims"][0])

    def shape(self, value: int) -> tuple[int, ...]:
        """At batch 1; channels last for what convolutions read and write."""
        tensor = self.values[value]
        dims = tuple(map(int, tensor["dims"]))
        return dims if tensor["constant_buffer_idx"] or dims[0] % self.batch else (dims[0] // self.batch, *dims[1:])

    def nbytes(self, value: int) -> int:
        """At batch 1, and with its scales where it is a constant."""
        tensor = self.values[value]
        if not tensor["constant_buffer_idx"]:
            return math.ceil(math.prod(self.shape(value)) * BITS[self.dtype(value)] / 8)
        scales = tensor.get("quant", {}).get("scale_buffer_idx", 0)
        return sum(int(self.description["constant_data"][i]["size"]) for i in (tensor["constant_buffer_idx"], scales) if i)

    def constant(self, value: int) -> bytes:
        """A constant's content, empty for what is computed."""
        return self.content(self.values[value]["constant_buffer_idx"])

    def content(self, index: int) -> bytes:
        """Of an entry of the constants, empty for entry 0."""
        entry: dict[str, Any] = self.description["constant_data"][index] if index else {"size": 0}
        if entry.get("named_key"):
            return self.named[entry["named_key"]]
        return self.constants[entry.get("offset", 0) : entry.get("offset", 0) + entry["size"]]

    def work(self, place: int) -> int:
        """Multiply-adds of a layer, or the values that another node writes, for one sample."""
        node = self.nodes[place]
        union, kind = node["xnode_union"], node["xnode_union_type"]
        written = math.prod(self.shape(union["output_id"]))
        if kind not in LAYERS:
            return written
        weight = self.shape(union["filter_id"])
        if kind == "XNNConvTranspose2d":
            return math.prod(self.shape(union["input1_id"])) * math.prod(weight[:3])
        return written * math.prod(weight[1:3] if kind == "XNNDepthwiseConv2d" else weight[1:])

    def pack(self) -> bytes:
        """The delegate's bytes: every constant once, in line, and nothing that the runtime does not read."""
        places: dict[bytes, int] = {b"": 0}
        together = bytearray()
        entries = [{"offset": 0, "size": 0}]
        for index in range(1, len(self.description["constant_data"])):
            content = self.content(index)
            if content not in places:
                together += bytes(-len(together) % ALIGNMENT)
                places[content] = len(together)
                together += content
            entries.append({"offset": places[content], "size": len(content)})
        nodes = [{k: v for k, v in node.items() if k != "debug_handle"} for node in self.nodes]
        description = _compiled({**self.description, "xnodes": nodes, "constant_data": entries})
        from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader

        filled = len(description) + -len(description) % ALIGNMENT
        header: bytes = XNNHeader(HEADER, len(description), HEADER + filled, len(together)).to_bytes()
        return header.ljust(HEADER, b"\0") + description.ljust(filled, b"\0") + bytes(together)


@dataclass
class File:
    """A parsed file. ``names``: the inputs, and the weight of each layer by delegate and place in its graph."""

    program: Any
    mutable: Any
    graphs: dict[int, Graph]
    inputs: tuple[str, ...]
    weights: dict[tuple[int, int], str]

    @classmethod
    def of(cls, payload: bytes) -> File:
        """Parse a file.

        Raises:
            LoweringError: it is none, or damaged.
        """
        with quiet():
            from executorch.exir._serialize._program import deserialize_pte_binary

        if payload[4:6] != b"ET":
            raise LoweringError("This is no .pte file: it does not say ET at its fourth byte.")
        try:
            found = deserialize_pte_binary(payload)
            plan = found.program.execution_plan[0]
            named = {} if found.named_data is None else {k: found.named_data.buffers[e.buffer_index] for k, e in found.named_data.pte_data.items()}
            graphs = {
                place: _decompiled(found.program.backend_delegate_data[delegate.processed.index].data, named)
                for place, delegate in enumerate(plan.delegates)
                if delegate.id == XNNPACK
            }
        except Exception as error:  # its readers raise whatever a wrong offset leads to
            raise LoweringError(f"The .pte file is damaged: {(str(error).splitlines() or [''])[0][:300]}") from error
        about = described(plan.container_meta_type.encoded_inp_str)
        weights = {(delegate, place): name for delegate, place, name in about.get("weights", ())}
        return cls(found.program, found.mutable_data, graphs, tuple(about.get("inputs", ())), weights)

    @property
    def plan(self) -> Any:
        return self.program.execution_plan[0]

    def tensor(self, value: int) -> Any:
        """A value of the plan that is a tensor."""
        return self.plan.values[value].val

    @property
    def instructions(self) -> list[Any]:
        return [i.instr_args for i in self.plan.chains[0].instructions]

    def layers(self) -> Iterator[tuple[int, int]]:
        """Delegate and place of every node with a weight, in the order in which they run."""
        for delegate, graph in self.graphs.items():
            yield from ((delegate, place) for place, node in enumerate(graph.nodes) if node["xnode_union_type"] in LAYERS)

    def kernel_constants(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Place of the instruction and content of every constant that a kernel of the program reads."""
        for place, call in enumerate(self.instructions):
            for value in call.args if hasattr(call, "op_index") else ():
                tensor = self.plan.values[value].val
                if getattr(tensor, "data_buffer_idx", 0):
                    kind = np.dtype(DTYPES[int(tensor.scalar_type)])
                    content = self.program.constant_buffer[tensor.data_buffer_idx].storage
                    yield place, np.frombuffer(content, kind, math.prod(tensor.sizes))

    def pack(self) -> bytes:
        """The file's bytes: constants in line, and its names in place of what the exporter says of its inputs."""
        from executorch.exir._serialize._program import PTEFile, serialize_pte_binary

        plan = self.plan
        about = {"inputs": list(self.inputs), "weights": [[*key, name] for key, name in self.weights.items()]}
        plan.container_meta_type.encoded_inp_str = MARK + json.dumps(about, separators=(",", ":"))
        plan.container_meta_type.encoded_out_str = ""
        for place, graph in self.graphs.items():
            self.program.backend_delegate_data[plan.delegates[place].processed.index].data = graph.pack()
        made = serialize_pte_binary(PTEFile(self.program, self.mutable), extract_delegate_segments=True, segment_alignment=ALIGNMENT)
        return bytes(made)


def _decompiled(content: bytes, named: dict[str, bytes]) -> Graph:
    """A delegate's bytes as a graph."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(content[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "graph.bin")
        source.write_bytes(content[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
        _flatc_decompile(folder, _schema(folder), str(source), ["--raw-binary"])
        text = source.with_suffix(".json").read_text()
    start = header.constant_data_offset
    return Graph(json.loads(INFINITE.sub(r'\1"\2"', text)), content[start : start + header.constant_data_size], named)


def _compiled(description: dict[str, Any]) -> bytes:
    from executorch.exir._serialize._flatbuffer import _flatc_compile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "graph.json")
        source.write_text(json.dumps(description))
        _flatc_compile(folder, _schema(folder), str(source))
        return source.with_suffix(".bin").read_bytes()


def _schema(folder: str) -> str:
    import executorch.backends.xnnpack.serialization as serialization

    made = Path(folder, "schema.fbs")
    made.write_bytes(importlib.resources.files(serialization).joinpath("schema.fbs").read_bytes())
    return str(made)
