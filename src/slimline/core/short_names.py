"""Short names for the values of a graph, by a rule that a reader of the graph can repeat: an archive need not store them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

Key = TypeVar("Key")


def short_names(uses: Mapping[Key, int], taken: Collection[str]) -> dict[Key, str]:
    """``a`` to ``z``, ``aa`` and so on: what is written most often gets the shortest, equals in the mapping's order.

    ``uses``: how often each value is written, in the order of first use. ``taken``: names that are given otherwise.

    Example:
        >>> short_names({"conv": 1, "relu": 2, "gemm": 1}, {"b"})
        {'relu': 'a', 'conv': 'c', 'gemm': 'd'}
    """
    names = (text for text in _texts() if text not in taken)
    return {key: next(names) for key in sorted(uses, key=lambda k: -uses[k])}


def _texts() -> Iterator[str]:
    digits = "abcdefghijklmnopqrstuvwxyz0123456789"
    for number in itertools.count():
        text, left = digits[number % 26], number // 26
        while left:
            text, left = text + digits[left % 36], left // 36
        yield text
