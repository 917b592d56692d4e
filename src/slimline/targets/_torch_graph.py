"""An exported module node by node: what each takes, and what is alive when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from slimline.core.contracts import Operation

BACKEND = "ATen"


class Timed(fx.Interpreter):
    """Runs the graph, noting each call's milliseconds."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.taken: dict[str, list[float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        start = time.perf_counter()
        value = super().run_node(n)
        self.taken.setdefault(n.name, []).append((time.perf_counter() - start) * 1e3)
        return value


def operations(module: fx.GraphModule, inputs: Sequence[torch.Tensor], runs: int) -> tuple[Operation, ...]:
    """Every call, with the weight that it decodes or consumes; ``bytes`` are of the tensors that it reads from the file."""
    timed = Timed(module)
    with torch.inference_mode():
        for _ in range(runs + 2):
            timed.run(*inputs, enable_io_processing=False)
    decoded: dict[str, str] = {}  # node -> the weight that it only carries
    found = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            decoded[node.name] = str(node.target).split("__")[0]
        if node.op != "call_function":
            continue
        reads = [a for a in node.all_input_nodes if a.op == "get_attr"]
        weights = [decoded[a.name] for a in node.all_input_nodes if a.name in decoded and _is_weight(decoded[a.name])]
        if all(a.name in decoded for a in node.all_input_nodes) and node.all_input_nodes:
            decoded[node.name] = weights[0] if weights else decoded[node.all_input_nodes[0].name]
        size = sum(_tensor(module, str(a.target)).nbytes for a in reads)
        taken = float(np.median(timed.taken[node.name][2:]))
        found.append(Operation(node.name, str(node.target), "float", weights[0] if weights else "", taken, BACKEND, size))
    return tuple(found)


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2].startswith("weight")


def _tensor(module: fx.GraphModule, name: str) -> torch.Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, torch.Tensor)
    return value


def peak_activations(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> int:
    """Most bytes of values alive at once, in the graph's order; views of what is alive count nothing, and the inputs, which the caller holds, live to the end."""
    last: dict[str, fx.Node] = {}
    end = next(n for n in module.graph.nodes if n.op == "output")
    for node in module.graph.nodes:
        for source in (node, *node.all_input_nodes):
            last[source.name] = end if source.op == "placeholder" else node
    stored = {_tensor(module, str(n.target)).untyped_storage().data_ptr() for n in module.graph.nodes if n.op == "get_attr"}
    alive: dict[str, tuple[int, int]] = {}  # node -> storage and its bytes
    peak = 0

    class Live(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            nonlocal peak
            value = super().run_node(n)
            if n.op in ("placeholder", "call_function"):
                for place, tensor in enumerate(t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)):
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in stored:  # a transposed weight is no activation
                        alive[f"{n.name}/{place}"] = (storage.data_ptr(), storage.nbytes())
            peak = max(peak, sum(dict(alive.values()).values()))
            for name in [k for k in alive if last[k.split("/")[0]] is n]:
                del alive[name]
            return value

    with torch.inference_mode():
        Live(module, garbage_collect_values=False).run(*inputs, enable_io_processing=False)
    return peak
