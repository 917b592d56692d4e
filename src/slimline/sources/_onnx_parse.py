"""Runs in the child process of ``_child.py``: an ONNX file becomes plain JSON and a file of tensors.

Nothing is allocated for a tensor before its claimed size was compared with what is there;
external data must be a regular file below the model's own folder, reached without links.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slimline.errors import ModelError
from slimline.sources._child import more_time
from slimline.sources._inside import open_inside, size_of
from slimline.sources._tensor_file import WIDTHS, TensorWriter, count

DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
          12: "uint32", 13: "uint64", 16: "bfloat16"}  # fmt: skip
FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}  # all others: int32_data
PACKED = {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # bits of types that artefacts hold and that are not lifted
EXTERNAL = 1
MOST_NODES = 200_000  # after functions were expanded


def parse(request: dict[str, Any]) -> dict[str, Any]:
    """The graph as JSON; tensors go to the file ``request["tensors"]``.

    Raises:
        ModelError: naming what is wrong with the file.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    path = Path(request["path"])
    model = read_checked(path)
    for value in (v for body in _graphs(model) for field in ("input", "output", "value_info") for v in getattr(body, field) if not isinstance(v, str)):
        if value.type.WhichOneof("value") != "tensor_type":
            value.ClearField("type")  # onnx-ir reads no maps; only tensors are asked for theirs
    parsed = ir.from_proto(model)
    if parsed.functions:
        common.InlinePass()(parsed)
    writer = TensorWriter(Path(request["tensors"]))
    made = _Graph(writer, path.parent)
    graph = made.convert(parsed.graph)
    values = {str(number): value.name or "" for value, number in made.ids.items()}
    opsets = {("" if d == "ai.onnx" else d): v for d, v in parsed.graph.opset_imports.items()}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"graph": graph, "tensors": writer.entries, "values": values, "opsets": opsets, "producer": producer}


def read_checked(path: Path) -> Any:
    """The message, whose tensors are what they claim to be and whose functions end.

    Raises:
        ModelError: naming what is wrong with the file.
    """
    model = _message(path.read_bytes())
    more_time(sum(_check(tensor, path.parent) for tensor in _tensors(model)))
    _check_functions(model)
    return model


def check_whole(content: bytes) -> None:
    """A file that is to be run as it is, by a runtime: all of its tensors lie in it, and none claims another size than it has.

    Raises:
        ModelError: naming what is wrong with the file.
    """
    model = _message(content)
    for tensor in _tensors(model):
        if tensor.data_location == EXTERNAL:
            raise ModelError(
                f"tensor {tensor.name or '(without a name)'} is stored in another file; an artefact is one file.",
                hint="Save it whole: onnx.save(onnx.load('MODEL.onnx'), 'WHOLE.onnx').",
            )
        if tensor.data_type in DTYPES:
            _check(tensor, Path())
        elif tensor.data_type in PACKED and tensor.HasField("raw_data"):
            numel = count(list(tensor.dims), f"tensor {tensor.name}")
            if len(tensor.raw_data) != -(-numel * PACKED[tensor.data_type] // 8):
                raise ModelError(f"tensor {tensor.name} claims {numel:,} values of {PACKED[tensor.data_type]} bits, but holds {len(tensor.raw_data):,} bytes.")
    _check_functions(model)


def _message(content: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError("this is no ONNX file, or it is cut off (protobuf cannot parse it).", hint="Export it again.") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError("this is no ONNX file: it holds no graph with outputs.", hint="Export it again.")
    return model


# -- checks on the bare message ------------------------------------------------------------------


def _graphs(model: Any) -> Iterator[Any]:
    """Every graph and function body, outermost first."""
    waiting = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _tensors(model: Any) -> Iterator[Any]:
    for body in _graphs(model):
        for value in getattr(body, "sparse_initializer", ()):
            raise ModelError(f"{value.values.name or 'a tensor'} is stored as a sparse tensor, which is not read.", hint="Export it dense.")
        yield from getattr(body, "initializer", ())
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    raise ModelError(f"{node.name or node.op_type} holds a sparse tensor, which is not read.", hint="Export it dense.")
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _check(tensor: Any, folder: Path) -> int:
    """The claimed shape against what is stored; how many bytes lie outside of the file."""
    name = f"tensor {tensor.name or '(without a name)'}"
    dims = list(tensor.dims)
    numel = count(dims, name)
    if tensor.data_type == 8:  # strings: class names of a classifier; only lifting decides whether they matter
        return 0
    if tensor.data_type not in DTYPES:
        raise ModelError(f"{name} is of the ONNX type {tensor.data_type}, which is not read.", hint="Export the float32 model.")
    if tensor.HasField("segment"):
        raise ModelError(f"{name} is stored in segments, which are not read.")
    nbytes = numel * WIDTHS[DTYPES[tensor.data_type]]
    if tensor.data_location == EXTERNAL:
        with open_external(tensor, folder, nbytes):
            pass
        return nbytes
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise ModelError(f"{name} claims {dims} and {nbytes:,} bytes, but holds {len(tensor.raw_data):,}.")
        return 0
    stored = len(getattr(tensor, FIELDS.get(tensor.data_type, "int32_data")))
    if stored != numel:
        raise ModelError(f"{name} claims {numel:,} values of shape {dims}, but holds {stored:,}.")
    return 0


def open_external(tensor: Any, folder: Path, nbytes: int) -> BinaryIO:
    """The opened file, at the tensor's place.

    Raises:
        ModelError: the path leaves the folder or is no regular file, or the data does not lie in it.
    """
    name = f"tensor {tensor.name or '(without a name)'}"
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", "0") or 0), int(entries.get("length", nbytes) or 0)
    except ValueError:
        raise ModelError(f"{name} has an offset or a length that is no number.") from None
    if offset < 0 or length != nbytes:
        raise ModelError(f"{name} claims {nbytes:,} bytes, but its external data are {length:,} at {offset:,}.")
    location = entries.get("location", "")
    file = open_inside(folder, location, f"the external data of {name}")
    if offset + length > size_of(file):
        held = size_of(file)
        file.close()
        raise ModelError(f"{name}: its external data {location} has {held:,} bytes, {offset + length:,} are needed.")
    file.seek(offset)
    return file


def _check_functions(model: Any) -> None:
    """Functions that call themselves, or multiply beyond measure, are refused before they are expanded."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    open_calls: set[tuple[str, str]] = set()

    def size(body: Any) -> int:
        return sum(_called(node) for node in body.node)

    def _called(node: Any) -> int:
        inner = sum(size(a.g) for a in node.attribute if a.HasField("g")) + sum(size(g) for a in node.attribute for g in a.graphs)
        key = (node.domain, node.op_type)
        if key not in bodies:
            return 1 + inner
        if key in open_calls:
            raise ModelError(f"the function {node.op_type} calls itself.")
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size(bodies[key])
            open_calls.discard(key)
        return sizes[key] + inner

    total = size(model.graph)
    if total > MOST_NODES:
        raise ModelError(f"it has {total:,} operations once its functions are expanded; at most {MOST_NODES:,} are read.")


# -- the graph as JSON -----------------------------------------------------------------------------


class _Graph:
    """Values get numbers; constants become tensors in the file."""

    def __init__(self, writer: TensorWriter, folder: Path) -> None:
        self.writer = writer
        self.folder = folder
        self.ids: dict[Any, int] = {}
        self.stored: dict[int, int] = {}

    def convert(self, graph: Any, outer: frozenset[Any] = frozenset()) -> dict[str, Any]:
        inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        constants = {}
        for value in graph.initializers.values():
            if value.const_value is None:
                raise ModelError(f"the initializer {value.name} holds no data.")
            constants[self.number(value)] = self.tensor(value.const_value, value.name or "")
        known = {*outer, *inputs, *graph.initializers.values()}
        nodes = []
        for node in _sorted(list(graph), known):
            known |= set(node.outputs)
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                constants[self.number(node.outputs[0])] = self.constant(node)
            else:
                nodes.append(self.node(node, frozenset(known)))
        for value in graph.outputs:
            if value not in known:
                raise ModelError(f"the output {value.name} is not computed by any operation.")
        return {
            "inputs": [self.described(v) for v in inputs],
            "outputs": [self.described(v) for v in graph.outputs],
            "constants": {str(k): v for k, v in constants.items()},
            "nodes": nodes,
        }

    def number(self, value: Any) -> int:
        return self.ids.setdefault(value, len(self.ids))

    def described(self, value: Any) -> dict[str, Any]:
        sizes = None if value.shape is None else [d if isinstance(d, int) else (d.value or "") for d in value.shape]
        shape = None if sizes is None else ["" if d == -1 else d for d in sizes]  # old exporters write a free size as -1
        if shape is not None:
            count([d for d in shape if isinstance(d, int)], f"the value {value.name}")
        kind = None if value.dtype is None else DTYPES.get(int(value.dtype))
        return {"id": self.number(value), "name": value.name or "", "shape": shape, "dtype": kind}

    def node(self, node: Any, known: frozenset[Any]) -> dict[str, Any]:
        return {
            "op": node.op_type,
            "domain": "" if node.domain == "ai.onnx" else node.domain,
            "name": node.name or "",
            "inputs": [None if v is None else self.number(v) for v in node.inputs],
            "outputs": [self.number(v) for v in node.outputs],
            "attributes": {name: self.attribute(a, known) for name, a in node.attributes.items()},
        }

    def attribute(self, attribute: Any, known: frozenset[Any]) -> Any:
        if attribute.is_ref():
            raise ModelError(f"the attribute {attribute.name} refers to a function's own, outside of any function.")
        kind, value = attribute.type.name, attribute.value
        if kind == "TENSOR":
            return {"tensor": self.tensor(value, value.name or attribute.name)}
        if kind == "GRAPH":
            return {"graph": self.convert(value, known)}
        if kind in ("INT", "FLOAT", "STRING"):
            return value
        if kind in ("INTS", "FLOATS", "STRINGS"):
            return list(value)
        return {"unread": kind}

    def constant(self, node: Any) -> int:
        import numpy as np

        (name, attribute), *_ = node.attributes.items() or [("", None)]
        label = node.outputs[0].name or ""
        if attribute is not None and name == "value":
            return self.tensor(attribute.value, label)
        if attribute is None or name not in ("value_int", "value_ints", "value_float", "value_floats"):
            raise ModelError(f"the constant {label} is a {name or 'bare'} one, which is not read.")
        array = np.asarray(attribute.value, np.float32 if "float" in name else np.int64)
        return self.writer.add(label, str(array.dtype), list(array.shape), array.tobytes())

    def tensor(self, value: Any, name: str) -> int:
        """Write a tensor once; its number in the file."""
        import onnx_ir as ir

        key = id(value)
        if key in self.stored:
            return self.stored[key]
        kind = DTYPES.get(int(value.dtype))
        if kind is None:
            raise ModelError(f"tensor {name} is of the ONNX type {value.dtype}, which is not read.")
        shape = [int(d) for d in value.shape]
        if isinstance(value, ir.ExternalTensor):
            proto = ir.to_proto(value)
            nbytes = count(shape, name) * WIDTHS[kind]
            with open_external(proto, self.folder, nbytes) as file:
                number = self.writer.copy(name, kind, shape, file, nbytes)
        else:
            number = self.writer.add(name, kind, shape, value.tobytes())
        self.stored[key] = number
        return number


def _sorted(nodes: list[Any], known: set[Any]) -> Iterator[Any]:
    """Nodes in an order in which each finds its inputs.

    Raises:
        ModelError: they wait for each other, or for a value that nothing gives.
    """
    given = {v for n in nodes for v in n.outputs}
    users: dict[Any, list[int]] = {}
    missing = []
    for place, node in enumerate(nodes):
        wanted = {v for v in (*node.inputs, *_captured(node)) if v is not None and v not in known}
        for value in wanted:
            if value in given:
                users.setdefault(value, []).append(place)
            elif not _inner(value, node):
                raise ModelError(f"{node.name or node.op_type} reads {value.name}, which nothing gives.")
        missing.append(len([v for v in wanted if v in given]))
    ready = [i for i in range(len(nodes) - 1, -1, -1) if not missing[i]]
    done = 0
    while ready:
        place = ready.pop()
        done += 1
        yield nodes[place]
        for value in nodes[place].outputs:
            for user in users.get(value, ()):
                missing[user] -= 1
                if not missing[user]:
                    ready.append(user)
    if done < len(nodes):
        raise ModelError(f"its graph is cyclic: {len(nodes) - done} operations wait for each other.")


def _captured(node: Any) -> Iterator[Any]:
    """Values that the bodies of a node read; those that they make themselves included."""
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type.name == "GRAPH":
            for inner in attribute.value:
                yield from inner.inputs
                yield from _captured(inner)


def _inner(value: Any, node: Any) -> bool:
    """Whether a body of the node makes the value itself; one that nothing makes is met when the body is converted."""
    return any(not a.is_ref() and a.type.name == "GRAPH" for a in node.attributes.values())
