"""From a parsed ONNX graph to a torch module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from slimline.errors import ModelError, SlimlineError
from slimline.sources import _onnx_functions, _onnx_layers, _onnx_ml, _onnx_shapes
from slimline.sources._lift import Lift, Pair, Sizes, TooMuch, Traced, Unliftable, Value
from slimline.sources._onnx_operation import RULES, SHAPE_RULES, Operation

FILLED_BY = (_onnx_functions, _onnx_layers, _onnx_ml, _onnx_shapes)  # importing them fills the tables
SHOWN = 8
MOST_BEHIND = 10  # of so many parts of a file's tensors, one may lie in what stays as it is
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")


class Opaque:
    """A value that no torch operation gives: one of the operations that it is computed with cannot be expressed."""


OPAQUE = Opaque()


@dataclass(frozen=True, eq=False)
class Lifted:
    """``module`` gives the values ``outputs`` (numbers): those of the file's own outputs that it has, then what else the ``left`` operations read.

    ``left``: operations at the file's end that stay as they are, by type; ``constants``: what they read that depends on no input, by number.
    """

    module: fx.GraphModule
    outputs: tuple[int, ...]
    left: Counter[str]
    constants: Mapping[int, torch.Tensor] = field(repr=False)


def lift_graph(
    parsed: Mapping[str, Any], tensors: Sequence[torch.Tensor], names: Sequence[str], inputs: Sequence[Pair], *, fixed_batch: bool = False
) -> Lifted:
    """The module that computes the graph; its arguments are called ``names``, ``inputs`` are two batches of each.

    Raises:
        ModelError: what cannot be expressed lies before a part of the network, and not at its end only; it lists all operations without a rule, or names the first at fault.
    """
    graph = parsed["graph"]
    lift = Lift(fixed_batch=fixed_batch, stored=sum(t.nbytes for t in tensors))
    stored = {id(t): entry["name"] for t, entry in zip(tensors, parsed["tensors"], strict=True)}
    values: dict[int, Value | Opaque] = {d["id"]: lift.input(n, p) for d, n, p in zip(graph["inputs"], names, inputs, strict=True)}
    given = set(values)
    run = _Run(lift, parsed["opsets"], tensors, stored)
    run.run(graph, values, outermost=True)
    read = {v: found for v, found in run.read.items() if not isinstance(found, Opaque)}
    behind = sum(tensors[i].nbytes for i in {i for n in run.left for i in _bodies(n)}) + sum(
        t.nbytes for t in {id(t): t for t in read.values() if isinstance(t, torch.Tensor) and id(t) in stored}.values()
    )
    free = any(isinstance(v, Sizes) and not v.constant for v in read.values())
    if run.left and (free or behind * MOST_BEHIND > lift.stored or not any(True for _ in lift.root.parameters())):
        raise _refusal(graph, run)
    outputs = {d["id"]: found for d in graph["outputs"] if not isinstance(found := values[d["id"]], Opaque)}
    outputs |= {v: found for v, found in read.items() if isinstance(found, Traced) and v not in given}
    constants = {v: lift.constant(found, "value") for v, found in read.items() if not isinstance(found, Traced) and str(v) not in graph["constants"]}
    return Lifted(lift.finish(list(outputs.values())), tuple(outputs), Counter(_kind(n) for n in run.left), constants)


def _refusal(graph: Mapping[str, Any], run: _Run) -> ModelError:
    missing = unknown_operations(graph)
    if not missing:
        assert run.error is not None
        return run.error
    shown = ", ".join(f"{t} ({n})" for t, n in missing.most_common(SHOWN)) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    quantized = any(t.rpartition("::")[2] in QUANTIZED for t in missing)
    return ModelError(
        f"These operations of its graph cannot be expressed in torch: {shown}.",
        hint="It is quantized already: give the float model."
        if quantized
        else "Only at a file's end can such operations stay as they are. Leave them out when exporting: they are often preprocessing.",
    )


def unknown_operations(graph: Mapping[str, Any]) -> Counter[str]:
    """Operations without a rule, those in the bodies of conditionals included."""
    found: Counter[str] = Counter()
    for node in graph["nodes"]:
        kind = _kind(node)
        if kind not in RULES and kind != "If":
            found[kind] += 1
        for value in node["attributes"].values():
            if isinstance(value, dict) and "graph" in value:
                found += unknown_operations(value["graph"])
    return found


def _kind(node: Mapping[str, Any]) -> str:
    return f"{node['domain']}::{node['op']}" if node["domain"] else str(node["op"])


@dataclass(eq=False)
class _Run:
    """``left``: operations that stay as they are; ``read``: what they read; ``error``: why the first of them does."""

    lift: Lift
    opsets: Mapping[str, int]
    tensors: Sequence[torch.Tensor]
    stored: dict[int, str] = field(repr=False)
    left: list[Mapping[str, Any]] = field(default_factory=list)
    read: dict[int, Value | Opaque] = field(default_factory=dict)
    error: ModelError | None = None

    def run(self, graph: Mapping[str, Any], values: dict[int, Value | Opaque], *, outermost: bool = False) -> None:
        """Lift the nodes in order; ``values`` gets their results and loses what nothing reads any more."""
        values.update({int(k): self.tensors[v] for k, v in graph["constants"].items()})
        nodes = _fused(graph, self.tensors)
        last = {v: place for place, node in enumerate(nodes) for v in node["inputs"] if v is not None}
        kept = {d["id"] for d in graph["outputs"]}
        nested = any("graph" in v for n in nodes for v in n["attributes"].values() if isinstance(v, dict))
        for place, node in enumerate(nodes):
            try:
                results: Sequence[Value | Opaque] = self.lifted(node, values)
            except ModelError as error:
                if not outermost or _too_much(error):
                    raise
                self.error = self.error or error
                self.left.append(node)
                self.read |= {v: values[v] for v in _reads(node) if v in values}
                results = [OPAQUE] * len(node["outputs"])
            values.update(zip(node["outputs"], results, strict=False))
            self.lift.kept += [r for r in results if isinstance(r, torch.Tensor)]
            if not nested:
                for v in set(node["inputs"]):
                    if v is not None and last[v] == place and v not in kept:
                        values.pop(v, None)

    def lifted(self, node: Mapping[str, Any], values: dict[int, Value | Opaque]) -> Sequence[Value]:
        """A node's results.

        Raises:
            ModelError: it cannot be expressed; its cause says why.
        """
        try:
            return self.node(node, values)
        except SlimlineError as error:
            raise ModelError(f"The operation {node['name'] or node['op']} ({_kind(node)}) cannot be expressed in torch: {error.message}.") from error
        except Exception as error:  # torch and Python raise anything on what does not fit together
            said = " ".join(str(error).split())[:300]
            raise ModelError(f"The operation {node['name'] or node['op']} ({_kind(node)}) cannot be computed: {said or type(error).__name__}") from error

    def node(self, node: Mapping[str, Any], values: dict[int, Value | Opaque]) -> Sequence[Value]:
        if node["op"] == "If" and not node["domain"]:
            return self.branch(node, values)
        inputs = tuple(None if i is None else _known(values[i]) for i in node["inputs"])
        attributes = {k: self.tensors[v["tensor"]] if isinstance(v, dict) and "tensor" in v else v for k, v in node["attributes"].items()}
        op = Operation(node["op"], node["name"], inputs, attributes, len(node["outputs"]), int(self.opsets.get(node["domain"], 1)), self.stored)
        kind = _kind(node)
        if kind not in RULES:
            raise Unliftable("there is no rule for it")
        result = None
        if kind in SHAPE_RULES and any(isinstance(v, Sizes) for v in inputs):
            result = SHAPE_RULES[kind](op, self.lift)
        if result is None:
            result = RULES[kind](op, self.lift)
        return list(result) if isinstance(result, list | tuple) else [result]

    def branch(self, node: Mapping[str, Any], values: dict[int, Value | Opaque]) -> Sequence[Value]:
        """A conditional whose condition is known: the branch that is taken."""
        condition = self.lift.constant(_known(values[node["inputs"][0]]), "condition")
        body = node["attributes"]["then_branch" if bool(condition) else "else_branch"]["graph"]
        inner = dict(values)
        self.run(body, inner)
        return [_known(inner[d["id"]]) for d in body["outputs"]]


def _known(value: Value | Opaque) -> Value:
    if isinstance(value, Opaque):
        raise Unliftable("it reads what cannot be expressed")
    return value


def _too_much(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, TooMuch) or _too_much(error.__cause__))


def _bodies(node: Mapping[str, Any]) -> Iterator[int]:
    """Tensors that the bodies of a node hold."""
    for value in node["attributes"].values():
        if isinstance(value, dict) and "graph" in value:
            yield from value["graph"]["constants"].values()
            for inner in value["graph"]["nodes"]:
                yield from _bodies(inner)


def _reads(node: Mapping[str, Any]) -> Iterator[int]:
    """Values that a node and its bodies read; those that the bodies make themselves included."""
    yield from (v for v in node["inputs"] if v is not None)
    for value in node["attributes"].values():
        if isinstance(value, dict) and "graph" in value:
            yield from (d["id"] for d in value["graph"]["outputs"])
            for inner in value["graph"]["nodes"]:
                yield from _reads(inner)


def _fused(graph: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """A product with a constant matrix and the vector added to it become one linear layer."""
    constants = {int(k): tensors[v] for k, v in graph["constants"].items()}
    users = Counter(v for n in graph["nodes"] for v in n["inputs"]) + Counter(d["id"] for d in graph["outputs"])
    products = {
        n["outputs"][0]: n
        for n in graph["nodes"]
        if _kind(n) == "MatMul" and users[n["outputs"][0]] == 1 and n["inputs"][0] not in constants and constants.get(n["inputs"][1], _SCALAR).ndim == 2
    }
    gone: set[int] = set()
    replaced: dict[int, dict[str, Any]] = {}
    for place, node in enumerate(graph["nodes"]):
        if _kind(node) != "Add":
            continue
        for one, two in (node["inputs"], node["inputs"][::-1]):
            product, bias = products.get(one), constants.get(two)
            if product is not None and bias is not None and bias.ndim == 1 and bias.numel() == constants[product["inputs"][1]].shape[1]:
                replaced[place] = {**product, "op": "Linear", "domain": "slimline", "inputs": [*product["inputs"], two], "outputs": node["outputs"]}
                gone.add(one)
                break
    return [replaced.get(place, node) for place, node in enumerate(graph["nodes"]) if not (node["outputs"] and node["outputs"][0] in gone)]


_SCALAR = torch.zeros(())
