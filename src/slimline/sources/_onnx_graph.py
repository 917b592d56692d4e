"""From a parsed ONNX graph to a torch module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from slimline.errors import ModelError, SlimlineError
from slimline.sources import _onnx_functions, _onnx_layers, _onnx_ml, _onnx_shapes
from slimline.sources._lift import Lift, Pair, Sizes, Value
from slimline.sources._onnx_operation import RULES, SHAPE_RULES, Operation

FILLED_BY = (_onnx_functions, _onnx_layers, _onnx_ml, _onnx_shapes)  # importing them fills the tables
SHOWN = 8
QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def lift_graph(
    parsed: Mapping[str, Any], tensors: Sequence[torch.Tensor], names: Sequence[str], inputs: Sequence[Pair], *, fixed_batch: bool = False
) -> fx.GraphModule:
    """The module that computes the graph; its arguments are called ``names``, ``inputs`` are two batches of each.

    Raises:
        ModelError: listing all operations that cannot be expressed, or naming the one at fault.
    """
    graph = parsed["graph"]
    missing = unknown_operations(graph)
    if missing:
        shown = ", ".join(f"{t} ({n})" for t, n in missing.most_common(SHOWN)) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        quantized = any(t.rpartition("::")[2] in QUANTIZED for t in missing)
        raise ModelError(
            f"These operations of its graph cannot be expressed in torch: {shown}.",
            hint="It is quantized already: give the float model." if quantized else "Leave them out when exporting: they are often pre- or postprocessing.",
        )
    lift = Lift(fixed_batch=fixed_batch, stored=sum(t.nbytes for t in tensors))
    stored = {id(t): entry["name"] for t, entry in zip(tensors, parsed["tensors"], strict=True)}
    values: dict[int, Value] = {d["id"]: lift.input(n, p) for d, n, p in zip(graph["inputs"], names, inputs, strict=True)}
    _Run(lift, parsed["opsets"], tensors, stored).run(graph, values)
    return lift.finish([values[d["id"]] for d in graph["outputs"]])


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
    lift: Lift
    opsets: Mapping[str, int]
    tensors: Sequence[torch.Tensor]
    stored: dict[int, str] = field(repr=False)

    def run(self, graph: Mapping[str, Any], values: dict[int, Value]) -> None:
        """Lift the nodes in order; ``values`` gets their results and loses what nothing reads any more."""
        values.update({int(k): self.tensors[v] for k, v in graph["constants"].items()})
        nodes = _fused(graph, self.tensors)
        last = {v: place for place, node in enumerate(nodes) for v in node["inputs"] if v is not None}
        kept = {d["id"] for d in graph["outputs"]}
        nested = any("graph" in v for n in nodes for v in n["attributes"].values() if isinstance(v, dict))
        for place, node in enumerate(nodes):
            try:
                results = self.node(node, values)
            except SlimlineError as error:
                raise ModelError(f"The operation {node['name'] or node['op']} ({_kind(node)}) cannot be expressed in torch: {error.message}.") from error
            except Exception as error:  # torch and Python raise anything on what does not fit together
                said = " ".join(str(error).split())[:300]
                raise ModelError(f"The operation {node['name'] or node['op']} ({_kind(node)}) cannot be computed: {said or type(error).__name__}") from error
            values.update(zip(node["outputs"], results, strict=False))
            self.lift.kept += [r for r in results if isinstance(r, torch.Tensor)]
            if not nested:
                for v in set(node["inputs"]):
                    if v is not None and last[v] == place and v not in kept:
                        values.pop(v, None)

    def node(self, node: Mapping[str, Any], values: dict[int, Value]) -> Sequence[Value]:
        if node["op"] == "If" and not node["domain"]:
            return self.branch(node, values)
        inputs = tuple(None if i is None else values[i] for i in node["inputs"])
        attributes = {k: self.tensors[v["tensor"]] if isinstance(v, dict) and "tensor" in v else v for k, v in node["attributes"].items()}
        op = Operation(node["op"], node["name"], inputs, attributes, len(node["outputs"]), int(self.opsets.get(node["domain"], 1)), self.stored)
        kind = _kind(node)
        result = None
        if kind in SHAPE_RULES and any(isinstance(v, Sizes) for v in inputs):
            result = SHAPE_RULES[kind](op, self.lift)
        if result is None:
            result = RULES[kind](op, self.lift)
        return list(result) if isinstance(result, list | tuple) else [result]

    def branch(self, node: Mapping[str, Any], values: dict[int, Value]) -> Sequence[Value]:
        """A conditional whose condition is known: the branch that is taken."""
        condition = self.lift.constant(values[node["inputs"][0]], "condition")
        body = node["attributes"]["then_branch" if bool(condition) else "else_branch"]["graph"]
        inner = dict(values)
        self.run(body, inner)
        return [inner[d["id"]] for d in body["outputs"]]


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
