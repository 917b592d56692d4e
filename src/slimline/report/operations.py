"""``operations.json``: what the runtime really executes, operation by operation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from slimline.core.contracts import Operation

SCHEMA = 1


def dumps(target: str, version: str, operations: Sequence[Operation], threads: int) -> str:
    """The optimised graph in the runtime's order.

    Each has ``name``, ``type``, ``executes`` (``integer`` or ``float``), ``backend``, ``weight`` (the parameter, or empty), ``bytes``
    (of its constants as loaded) and ``milliseconds`` (median at batch 1, as the runtime's profile says); ``null`` where the runtime does not tell.

    Example:
        >>> print(dumps("torch", "2.13", [Operation("linear", "aten.linear", "float", "fc.weight")], 1))  # doctest: +ELLIPSIS
        {
          "schema": 1,
          "target": "torch",
        ...
    """
    return json.dumps(
        {"schema": SCHEMA, "target": target, "version": version, "threads": threads, "operations": [dataclasses.asdict(o) for o in operations]}, indent=2
    )
