"""Runs in the child process of ``_child.py``: the end of an ONNX file that stays as it is, cut off, compared, and set behind an artefact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slimline.errors import ModelError
from slimline.sources._onnx_parse import DTYPES, EXTERNAL, open_external, read_checked
from slimline.sources._onnx_run import session
from slimline.sources._tensor_file import WIDTHS, count

TOLERANCE = 1e-4  # of the larger of 1 and the largest number
KINDS = {name: number for number, name in DTYPES.items()}


def cut(request: dict[str, Any]) -> dict[str, Any]:
    """Writes to ``request["rest"]`` what computes the file's ``outputs`` from values that the torch module gives, and runs it; gives the names of those that it reads.

    ``taken``: these values, ``constants``: values that are known; both are ``.npy`` files by name. Nothing is known of how much the rest computes, so it is first run here,
    with the limits of a parser.

    Raises:
        ModelError: it needs more than that, or the runtime refuses it.
    """
    import numpy as np
    import onnx_ir as ir
    from onnx import helper, numpy_helper
    from onnx_ir.passes import common

    path = Path(request["path"])
    proto = read_checked(path)
    if proto.functions:
        model = ir.from_proto(proto)
        common.InlinePass()(model)
        proto = ir.to_proto(model)
    graph = proto.graph
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    stored = {t.name: t for t in graph.initializer}
    known = {name: numpy_helper.from_array(np.load(file, allow_pickle=False), name) for name, file in request["constants"].items()}
    wanted = [o for o in graph.output if o.name in request["outputs"]]
    waiting, seen, places, held = [o.name for o in wanted], set(), set(), []
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in request["taken"]:
            continue
        if name in known or name in stored:
            held.append(known.get(name) or _inside(stored[name], path.parent))
        elif name in makers:
            places.add(makers[name])
            waiting += _reads(graph.node[makers[name]], frozenset())
        else:
            raise ModelError(f"what stays as it is reads {name}, which nothing gives.")
    taken = {name: array[: request["batch"]] for name, array in _arrays(request["taken"]).items() if name in seen}
    inputs = [helper.make_tensor_value_info(n, KINDS[str(a.dtype)], [f"{n}_{d}" for d in range(a.ndim)]) for n, a in taken.items()]
    rest = helper.make_graph([graph.node[p] for p in sorted(places)], "rest", inputs, wanted, held)
    made = helper.make_model(rest, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
    Path(request["rest"]).write_bytes(made.SerializeToString())
    _ran(session(request["rest"]), [], taken)
    return {"taken": list(taken)}


def _reads(node: Any, local: frozenset[str]) -> Iterator[str]:
    """Names that a node reads, those that its bodies take from outside among them."""
    yield from (n for n in node.input if n and n not in local)
    for body in _bodies(node):
        own = local | {t.name for t in (*body.input, *body.initializer)} | {o for n in body.node for o in n.output}
        yield from (o.name for o in body.output if o.name not in own)
        for inner in body.node:
            yield from _reads(inner, own)


def _inside(tensor: Any, folder: Path) -> Any:
    """The tensor with its data in it."""
    if tensor.data_location != EXTERNAL:
        return tensor
    nbytes = count(list(tensor.dims), tensor.name) * WIDTHS[DTYPES[tensor.data_type]]
    with open_external(tensor, folder, nbytes) as file:
        tensor.raw_data = file.read(nbytes)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return tensor


# -- the same results ------------------------------------------------------------------------------


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """``outputs`` of the file on ``inputs``, and those of the rest on the values that the torch module gave it (``taken``); both are ``.npy`` files by name.

    Raises:
        ModelError: they differ, or the runtime refuses one of them.
    """
    inputs, taken = (_arrays(request[k]) for k in ("inputs", "taken"))
    total, size = len(next(iter(inputs.values()))), request["batch"]
    whole, rest = session(request["path"]), session(request["rest"])
    for start in range(0, total, size):
        places = [i % total for i in range(start, start + size)]
        both = [_ran(one, request["outputs"], {n: a[places] for n, a in given.items()}) for one, given in ((whole, inputs), (rest, taken))]
        for name, theirs, ours in zip(request["outputs"], *both, strict=True):
            _same(name, theirs, ours)
    return {}


def _arrays(files: Mapping[str, str]) -> dict[str, Any]:
    import numpy as np

    return {name: np.load(file, allow_pickle=False) for name, file in files.items()}


def _ran(one: Any, outputs: list[str], given: Mapping[str, Any]) -> list[Any]:
    """Raises ``ModelError``: the runtime refuses what it is given."""
    try:
        found: list[Any] = one.run(outputs, dict(given))
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses it: {' '.join(str(error).split())[:400]}") from error
    return found


def _same(name: str, theirs: Any, ours: Any) -> None:
    """Two results: arrays, strings, lists or dictionaries.

    Raises:
        ModelError: they differ, numbers by more than 1e-4 of the larger of 1 and the largest.
    """
    import numpy as np

    if isinstance(theirs, list | dict):
        keys = range(len(theirs)) if isinstance(theirs, list) else theirs
        if type(ours) is not type(theirs) or len(ours) != len(theirs) or (isinstance(theirs, dict) and set(ours) != set(theirs)):
            raise ModelError(f"its output {name} has another structure behind the torch module.")
        for key in keys:
            _same(name, theirs[key], ours[key])
        return
    a, b = np.asarray(theirs), np.asarray(ours)
    if a.shape != b.shape:
        raise ModelError(f"its output {name} is {list(a.shape)}, but {list(b.shape)} behind the torch module.")
    if a.dtype.kind != "f":
        if not np.array_equal(a, b):
            raise ModelError(f"its output {name} differs behind the torch module.")
        return
    finite = np.isfinite(a)
    bound = TOLERANCE * max(1.0, float(np.abs(a[finite]).max(initial=0.0)))
    far = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    if not far <= bound or not np.array_equal(np.isfinite(b), finite):
        raise ModelError(f"its output {name} differs behind the torch module by {far:.3g} (at most {bound:.3g} is allowed).")


# -- behind an artefact ----------------------------------------------------------------------------


def join(request: dict[str, Any]) -> dict[str, Any]:
    """Writes to ``request["whole"]`` the artefact (``path``) with the rest behind it. Together they give on ``inputs`` what they give one after the other.

    ``wires``: what the rest takes -> the place of that among the artefact's outputs, or the name of one of its inputs; ``outputs``: all of the
    file's own in order -> their place among the artefact's outputs, or ``None``: the rest gives them.

    Raises:
        ModelError: they cannot be joined, or give something else then.
    """
    import onnx

    whole, rest = (onnx.load_model_from_string(Path(request[k]).read_bytes()) for k in ("path", "rest"))
    wires, outputs, inputs = request["wires"], request["outputs"], _arrays(request["inputs"])
    first = session(request["path"])
    alone = _ran(first, [o.name for o in first.get_outputs()], {i.name: inputs[i.name] for i in first.get_inputs()})
    taken = {name: inputs[w] if isinstance(w, str) else alone[w] for name, w in wires.items()}
    wanted = dict(zip((o.name for o in rest.graph.output), _ran(session(request["rest"]), [], taken), strict=True))
    wanted |= {name: alone[place] for name, place in outputs.items() if place is not None}

    rest = _of_opset(rest, _opsets(whole).get("", 1))
    taken_names = {*outputs, *_names(whole.graph), *_names(rest.graph), *(i.name for i in (*whole.graph.input, *rest.graph.input))}

    def fresh(name: str) -> str:
        while name in taken_names:
            name += "_"
        taken_names.add(name)
        return name

    own = {place: name for name, place in outputs.items() if place is not None}
    made = {o.name: own.get(place) or fresh(f"compressed_{place}") for place, o in enumerate(whole.graph.output)}
    made |= {n: fresh(n) for n in _names(whole.graph) if n not in made and n in outputs}
    _rename(whole.graph, made)
    given = [o.name for o in whole.graph.output]
    behind = {n: fresh(f"rest_{n}") for n in _names(rest.graph) if n not in outputs} | {n: w if isinstance(w, str) else given[w] for n, w in wires.items()}
    _rename(rest.graph, behind)
    known = {i.name for i in whole.graph.input} | set(given)
    infos = {o.name: o for o in (*whole.graph.output, *rest.graph.output)}
    whole.graph.input.extend(i for i in rest.graph.input if i.name not in known)
    whole.graph.node.extend(rest.graph.node)
    whole.graph.initializer.extend(rest.graph.initializer)
    whole.graph.ClearField("output")
    whole.graph.output.extend(infos[n] for n in outputs)
    whole.opset_import.extend(o for o in rest.opset_import if (o.domain if o.domain != "ai.onnx" else "") not in _opsets(whole))
    whole.ir_version = max(whole.ir_version, rest.ir_version)
    Path(request["whole"]).write_bytes(whole.SerializeToString())
    last = session(request["whole"])
    for name, theirs in zip(outputs, _ran(last, list(outputs), {i.name: inputs[i.name] for i in last.get_inputs()}), strict=True):
        _same(name, wanted[name], theirs)
    return {}


def _opsets(model: Any) -> dict[str, int]:
    return {o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import}


def _of_opset(model: Any, version: int) -> Any:
    """The model for another opset of the default domain.

    Raises:
        ModelError: an operation is another one there.
    """
    import onnx
    from onnx import version_converter

    before = _opsets(model).get("", version)

    def changed(graph: Any) -> list[str]:
        nodes = [n for n in _nodes(graph) if n.domain in ("", "ai.onnx")]
        return [n.op_type for n in nodes if len({onnx.defs.get_schema(n.op_type, v, "").since_version for v in (before, version)}) > 1]

    if changed(model.graph):
        inner = [k for node in model.graph.node for g in _bodies(node) for k in changed(g)]
        try:
            return version_converter.convert_version(model, version) if not inner else _refuse(f"{inner[0]} within a body")
        except RuntimeError as error:
            _refuse(str(error))
    for one in model.opset_import:
        if one.domain in ("", "ai.onnx"):
            one.version = version
    return model


def _refuse(why: str) -> Any:
    raise ModelError(f"what stays as it is cannot be written for the artefact's opset: {' '.join(why.split())[:200]}")


def _bodies(node: Any) -> list[Any]:
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _names(graph: Any) -> set[str]:
    """All values that a graph and its bodies make or hold."""
    bodies = [b for node in graph.node for b in _bodies(node)]
    own = {o for n in graph.node for o in n.output if o} | {t.name for t in graph.initializer}
    return own.union(*(_names(b) | {i.name for i in b.input} for b in bodies))


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for named in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        named.name = names.get(named.name, named.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(n, n) for n in field]
        for body in _bodies(node):
            _rename(body, names)
