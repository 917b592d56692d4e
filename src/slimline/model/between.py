"""Values between integer layers: what a runtime needs on a grid to stay in integers from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import fx

from slimline.core.edits import Encode, Numerics, QuantizeValue
from slimline.core.samples import Samples
from slimline.model.operations import activation_after, is_transparent, through_transparent, weight_arguments
from slimline.model.program import Program, computed
from slimline.model.quantizers import freeze, mangled, quantize
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.affine import Histogram, value_range

decomposed = torch.ops.quantized_decomposed


def completing(program: Program, statistics: ProgramStatistics, edits: Sequence[Numerics], *, throughout: bool = True) -> list[QuantizeValue]:
    """Grids for what lies between integer layers and for the outputs that integer layers give.

    A sum, mean or concatenation gets one when everything that it reads has one. An output's grid covers its
    whole range: cutting scores off would make the largest ones equal.

    ``throughout``: as runtimes want it that run a layer in integers only where its output is on a grid. Without, only what lies
    between gets one: what is read by nothing but sums, means and concatenations that have one, too.
    """
    names = program.names
    quantized = {e.value for e in edits if isinstance(e, QuantizeValue)}
    integer = {e.parameter for e in edits if isinstance(e, Encode) and e.execute == "integer"}
    wanted: dict[str, fx.Node] = {}
    for node, value in computed(program):
        read = {names.get(through_transparent(n).name, "") for n in node.all_input_nodes}
        if value not in quantized and read <= quantized:
            quantized.add(value)
            wanted[value] = activation_after(node)[0]
    if not throughout:
        onto = dict(computed(program))
        for value, last in reversed(wanted.items()):
            if not all(onto.get(reader) in quantized for reader in _readers(last)):
                quantized.remove(value)
        return [edit for value in wanted if value in quantized for edit in _grid(statistics, value, final=False)]
    found = [edit for value, last in wanted.items() for edit in _grid(statistics, value, final=any(u.op == "output" for u in last.users))]
    outputs = {use.output for use in program.weights.values() if use.final and use.parameter in integer}
    for value in sorted(outputs - quantized):
        found += _grid(statistics, value, final=True)
    return found


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value, also after it was moved."""
    for user in node.users:
        if is_transparent(user):
            yield from _readers(user)
        else:
            yield user


def _grid(statistics: ProgramStatistics, value: str, *, final: bool) -> list[QuantizeValue]:
    histogram = statistics.histogram(value)
    return [] if histogram is None else [_edit(histogram, value, final=final)]


def _edit(histogram: Histogram, value: str, *, final: bool) -> QuantizeValue:
    scale, zero = value_range(histogram, "minmax" if final else "mse")
    return QuantizeValue(value, bits=8, signed=False, scale=scale, zero_point=zero)


def completed(program: Program, samples: Samples, *, batch: int = 64) -> tuple[Program, tuple[str, ...]]:
    """A copy of a stored program with the grids that ``completing`` would have given it, by what ``samples`` show, and the values that got one.

    For a plan that was made for a runtime which takes integers and floats side by side. No weight changes.
    """
    wanted = _missing(program)
    if not wanted:
        return program, ()
    histograms = _histograms(program, samples, frozenset(wanted), batch)
    names = program.names
    edits = [_edit(histograms[node], names[node], final=final) for node, final in wanted.items()]
    new = freeze(quantize(program, edits))
    new.encoded = program.encoded
    return new, tuple(e.value for e in edits)


def _missing(program: Program) -> dict[str, bool]:
    """Names of the nodes whose values need a grid, in graph order, and whether they leave the model."""
    stems = {f"{mangled(p)}__values" for p, e in program.encoded.items() if e.execute == "integer"}
    computing = {node for node, _ in computed(program)}
    found: dict[str, bool] = {}
    for node in program.graph.nodes:
        last = activation_after(node)[0]
        if last.name in found or any(u.target is decomposed.quantize_per_tensor.default for u in last.users):
            continue
        final = any(u.op == "output" for u in last.users)
        layer = any(_decodes(weight, stems) for _, weight, _ in weight_arguments(node))
        if (layer and final) or (node in computing and all(_on_grid(n, found) for n in node.all_input_nodes)):
            found[last.name] = final
    return found


def _on_grid(node: fx.Node, found: Mapping[str, bool]) -> bool:
    """Whether what is read here was dequantized from integers, or is to be."""
    source = through_transparent(node) if is_transparent(node) else node
    return source.target is decomposed.dequantize_per_tensor.default or source.name in found


def _decodes(weight: fx.Node, stems: set[str]) -> bool:
    return any(a.op == "get_attr" and str(a.target) in stems for a in weight.all_input_nodes)


def _histograms(program: Program, samples: Samples, nodes: frozenset[str], batch: int) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}

    def observe(node: fx.Node, value: object) -> object:
        if node.name in nodes and isinstance(value, torch.Tensor):
            seen = Histogram.of(value.detach())
            found[node.name] = found[node.name].merge(seen) if node.name in found else seen
        return value

    with torch.no_grad():
        for part in samples.batches(batch):
            program.run(part, trace=observe)
    return found
