"""Values between integer layers: what a runtime needs on a grid to stay in integers from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

from slimline.core.edits import Encode, Numerics, QuantizeValue
from slimline.model.operations import activation_after, through_transparent
from slimline.model.program import Program, computed
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.affine import value_range


def completing(program: Program, statistics: ProgramStatistics, edits: Sequence[Numerics]) -> list[QuantizeValue]:
    """Grids for what lies between integer layers and for the outputs that integer layers give.

    A sum, mean or concatenation gets one when everything that it reads has one. An output's grid covers its
    whole range: cutting scores off would make the largest ones equal.
    """
    names = program.names
    quantized = {e.value for e in edits if isinstance(e, QuantizeValue)}
    integer = {e.parameter for e in edits if isinstance(e, Encode) and e.execute == "integer"}
    found: list[QuantizeValue] = []
    outputs = {use.output for use in program.weights.values() if use.final and use.parameter in integer}
    for node, value in computed(program):
        read = {names.get(through_transparent(n).name, "") for n in node.all_input_nodes}
        if value not in quantized and read <= quantized:
            quantized.add(value)
            found += _grid(statistics, value, final=any(u.op == "output" for u in activation_after(node)[0].users))
    for value in sorted(outputs - quantized):
        found += _grid(statistics, value, final=True)
    return found


def _grid(statistics: ProgramStatistics, value: str, *, final: bool) -> list[QuantizeValue]:
    histogram = statistics.histogram(value)
    if histogram is None:
        return []
    scale, zero = value_range(histogram, "minmax" if final else "mse")
    return [QuantizeValue(value, bits=8, signed=False, scale=scale, zero_point=zero)]
