"""What ExecuTorch ran, by its own trace: the operations of XNNPACK's graphs and the kernels between them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimline.core.contracts import Operation
from slimline.model.trace import quiet
from slimline.targets._executorch_file import ALIGNMENT, INTEGER, LAYERS, OUTSIDE, File, Graph
from slimline.targets._tflite_reading import Buffer, peak

HEAVY = ("Convolution", "Deconvolution", "Fully Connected")  # names of XNNPACK's operators that take weights
WARM_UP = 3
CUT_OFF = 0.0005  # milliseconds, on average, by which whole microseconds fall short
TYPE = re.compile(r"\b(Q[A-Z]*\d+|F16|F32|BF16)")


@dataclass
class Profile:
    """Milliseconds: of each operator within a delegate's call, and of each kernel, by the instruction's place.

    XNNPACK tells whole microseconds, so its times are means of all runs but the slowest fifth; those of kernels are medians.
    """

    delegates: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    kernels: dict[int, float] = field(default_factory=dict)


def profile(module: Any) -> Profile:
    """From the trace of a module that was run more than ``WARM_UP`` times."""
    with quiet():
        from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.etdp")
        module.write_etdump_result_to_file(str(file))
        with quiet():
            trace = deserialize_from_etdump_flatcc(file.read_bytes())
    inside: dict[int, list[list[tuple[str, float]]]] = {}
    kernels: dict[int, list[float]] = {}
    runs = [run for run in trace.run_data if any(e.profile_event is not None and e.profile_event.name == "Method::execute" for e in run.events or ())]
    for run in runs[WARM_UP:]:
        here: dict[int, list[tuple[str, float]]] = {}
        for event in (e.profile_event for e in run.events if e.profile_event is not None):
            taken = (event.end_time - event.start_time) / 1e6
            if event.delegate_debug_id_str:
                here.setdefault(event.instruction_id, []).append((event.delegate_debug_id_str.rpartition(" #")[0], taken))
            elif event.name == "OPERATOR_CALL":
                kernels.setdefault(event.instruction_id, []).append(taken)
        for place, operators in here.items():
            inside.setdefault(place, []).append(operators)
    found = Profile(kernels={place: float(np.median(times)) for place, times in kernels.items()})
    for place, each in inside.items():
        found.delegates[place] = [
            (column[0][0], float(np.mean(np.sort([t for _, t in column])[: -len(column) // 5])) + CUT_OFF) for column in zip(*each, strict=True)
        ]
    return found


def operations(file: File, times: Profile) -> tuple[Operation, ...]:
    """Everything that runs, in order."""
    found: list[Operation] = []
    for place, call in enumerate(file.instructions):
        if hasattr(call, "delegate_index"):
            found += _delegated(file, call.delegate_index, times.delegates.get(place, []))
        elif hasattr(call, "op_index"):
            named = file.plan.operators[call.op_index]
            held = sum(content.nbytes for of, content in file.kernel_constants() if of == place)
            weight = file.weights.get((OUTSIDE, place), "")
            found.append(Operation(f"{named.name}_{place}", named.name, "float", weight, times.kernels.get(place), "portable", held))
    return tuple(found)


def _delegated(file: File, delegate: int, ran: list[tuple[str, float]]) -> Iterator[Operation]:
    """XNNPACK's operators, each layer with its weight; without a trace, the graph as it stands in the file."""
    graph = file.graphs[delegate]
    layers = [place for place, node in enumerate(graph.nodes) if node["xnode_union_type"] in LAYERS]
    if sum(name.startswith(HEAVY) for name, _ in ran) != len(layers):
        for place, node in enumerate(graph.nodes):
            kind = node["xnode_union_type"].removeprefix("XNN")
            yield _operation(file, graph, delegate, place, kind, "integer" if kind != "Convert" and _reads_integers(graph, node) else "float", None)
        return
    waiting, before = iter(layers), "float"
    places = {base: iter(_alike(graph, base, sum(_base(other) == base for other, _ in ran))) for base in {_base(name) for name, _ in ran}}
    for count, (name, taken) in enumerate(ran):
        if name.startswith(HEAVY):
            before = executes(name)
            yield _operation(file, graph, delegate, next(waiting), name, before, taken)
            continue
        ran_by: dict[str, Any] | None = next(places[_base(name)], None)
        if TYPE.search(name) is not None or ran_by is None:  # a clamp without a node of its own was split off the operation before it
            before = before if ran_by is None and name.startswith("Clamp") else executes(name)
        else:
            before = "integer" if not name.startswith("Convert") and _reads_integers(graph, ran_by) else "float"
        yield Operation(f"{delegate}_{count}", name, before, "", taken, "XNNPACK", 0)


def _base(name: str) -> str:
    """``add`` of ``Add (ND)``."""
    return name.partition(" (")[0].replace(" ", "").lower()


def _alike(graph: Graph, base: str, count: int) -> list[dict[str, Any]]:
    """The nodes that operators of this name ran, in order; none where their numbers differ."""
    found = [n for n in graph.nodes if n["xnode_union_type"].removeprefix("XNN").lower().startswith(base)]
    return found if len(found) == count else []


def executes(name: str) -> str:
    """Whether an operator of XNNPACK computes in integers; its name tells the types that it takes.

    Example:
        >>> executes("Fully Connected (NC, QD8, F32, QC8W)"), executes("Fully Connected (NC, F32, QC8W) GEMM"), executes("Convert (NC, QS8, F32)")
        ('integer', 'float', 'float')
    """
    first = TYPE.search(name)
    return "integer" if first is not None and first[0].startswith("Q") and not name.startswith("Convert") else "float"


def _reads_integers(graph: Graph, node: Mapping[str, Any]) -> bool:
    union = node["xnode_union"]
    return graph.dtype(union.get("input1_id", union.get("input_id", union["output_id"]))) in INTEGER


def _operation(file: File, graph: Graph, delegate: int, place: int, kind: str, how: str, taken: float | None) -> Operation:
    union = graph.nodes[place]["xnode_union"]
    constants = [union[key] for key in ("filter_id", "bias_id") if union.get(key) in graph.values]
    name = file.weights.get((delegate, place), "")
    return Operation(f"{delegate}_{place}", kind, how, name, taken, "XNNPACK", sum(map(graph.nbytes, constants)), graph.work(place))


def memory_parts(file: File) -> tuple[int, int]:
    """Bytes of constants; of the plan's own buffers (sized for the largest batch) with, for one sample, the inputs and what the largest delegate works in.

    XNNPACK's graphs share one workspace, planned as here: the largest value first, each at the lowest place that is free while it lives.
    """
    constants = sum(len(graph.constants) for graph in file.graphs.values()) + sum(len(b.storage) for b in file.program.constant_buffer)
    inputs = sum(int(np.prod(file.tensor(v).sizes[1:])) * 4 for v in file.plan.inputs)
    return constants, inputs + sum(map(int, file.plan.non_const_buffer_sizes)) + max((peak(lives(g), ALIGNMENT) for g in file.graphs.values()), default=0)


def lives(graph: Graph) -> tuple[Buffer, ...]:
    """Each value that lies in the workspace: computed in the graph and read in it alone."""
    outside = {*graph.description["input_ids"], *graph.description["output_ids"]}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for place, node in enumerate(graph.nodes):
        for key, value in node["xnode_union"].items():
            if key.endswith("_id") and value in graph.values and value not in outside and not graph.values[value]["constant_buffer_idx"]:
                first.setdefault(value, place)
                last[value] = place
    return tuple(Buffer(graph.nbytes(v), first[v], last[v], v) for v in first)
