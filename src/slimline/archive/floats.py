"""Floating-point tensors, without loss: sign, exponent and mantissa bit by bit.

What there is to gain lies in the exponents, and in mantissas that were rounded: bits that are always zero cost nothing.
"""

from __future__ import annotations

import numpy as np

from slimline.archive.coder import Array, Coder
from slimline.archive.mixing import Stage

SMALL, LARGE = 256, 1 << 15  # numbers in the first tile, and at most
TREE = 3  # leading mantissa bits whose probabilities depend on those before them
LAYOUTS = {2: (5, 10), 4: (8, 23), 8: (11, 52)}  # bits of exponent and mantissa, by bytes


class Floats:
    """The model of all tensors of one width (2, 4 or 8 bytes) and use."""

    def __init__(self, width: int) -> None:
        self.exponent_bits, self.mantissa_bits = LAYOUTS[width]
        self._exponent = Stage((1, 1 << min(self.exponent_bits, 8)), 1 << self.exponent_bits)
        self._sign = Stage((1,))
        self._top = Stage((1,), 1 << TREE)
        self._rest = Stage((1,), 64)

    def code(self, coder: Coder, count: int, patterns: Array | None) -> Array:
        """Bit patterns ``[count]``, int64 (of 8-byte floats reinterpreted)."""
        found = np.zeros(count, np.int64)
        start, step = 0, SMALL
        while start < count:
            stop = min(count, start + step)
            found[start:stop] = self._tile(coder, stop - start, None if patterns is None else patterns[start:stop], int(found[start - 1]) if start else 0)
            start, step = stop, min(4 * step, LARGE)
        return found

    def _tile(self, coder: Coder, count: int, given: Array | None, previous: int) -> Array:
        e, m = self.exponent_bits, self.mantissa_bits

        def bit(place: int) -> Array | None:
            return None if given is None else (given >> place) & 1

        contexts = np.zeros((2, count), np.int64)
        contexts[1] = (previous >> m) & ((1 << e) - 1) & 255
        sign = self._sign.code(coder, contexts[:1], 0, bit(e + m))
        node = np.ones(count, np.int64)
        for place in range(e + m - 1, m - 1, -1):
            node = 2 * node + self._exponent.code(coder, contexts, node, bit(place))
        found = (sign << e) + node - (1 << e)
        node = np.ones(count, np.int64)
        for place in range(m - 1, -1, -1):
            if m - 1 - place < TREE:
                taken = self._top.code(coder, contexts[:1], node, bit(place))
                node = 2 * node + taken
            else:
                taken = self._rest.code(coder, contexts[:1], place, bit(place))
            found = 2 * found + taken
        return found
