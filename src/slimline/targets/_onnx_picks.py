"""Rows of tables that are picked at places known before the model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Pick = tuple[
    onnx.NodeProto, onnx.NodeProto | None, np.ndarray[Any, Any]
]  # the node that picks, the cast between it and the table if there is one, and what it picks


def pick_ahead(graph: onnx.GraphProto) -> None:
    """Store what is picked, where every reader of a table picks at constant places and that is less than the table: of 512 learned positions a model of 64 tokens keeps 64."""
    constants = {t.name: t for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {o.name: [onnx.NodeProto()] for o in graph.output}  # what leaves the graph is read by something else, too
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    for table in constants.values():
        picks = _picks(readers, constants, table.name)
        if not picks or sum(rows.size for _, _, rows in picks) >= math.prod(table.dims):
            continue
        for gather, cast, rows in picks:
            name = gather.output[0] if cast is None else f"{gather.output[0]}__rows"
            graph.initializer.append(numpy_helper.from_array(rows, name))
            if cast is not None:
                cast.input[0], cast.output[0] = name, gather.output[0]
            graph.node.remove(gather)
        graph.initializer.remove(table)


def _picks(readers: Mapping[str, Sequence[onnx.NodeProto]], constants: Mapping[str, onnx.TensorProto], table: str) -> list[Pick]:
    """Of every reader of a table; nothing where one of them reads otherwise."""
    found: list[Pick] = []
    for reader in readers.get(table, ()):
        cast = reader if reader.op_type == "Cast" else None
        picks = [reader] if cast is None else readers.get(cast.output[0], ())
        if len(picks) != 1 or picks[0].op_type != "Gather":
            return []
        gather = picks[0]
        if gather.input[0] not in (table, *reader.output) or gather.input[1] not in constants or any(not r.op_type for r in readers.get(gather.output[0], ())):
            return []
        axis = next((helper.get_attribute_value(a) for a in gather.attribute if a.name == "axis"), 0)
        found.append((gather, cast, np.take(numpy_helper.to_array(constants[table]), numpy_helper.to_array(constants[gather.input[1]]), axis)))
    return found
