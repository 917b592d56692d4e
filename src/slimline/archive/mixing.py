"""Adaptive probabilities of bits, from several contexts at once, for many bits side by side.

A *stage* is one kind of yes-or-no question about a number ("is it zero?"). It is asked for a whole tile of numbers at
once: each context predicts from what was counted in it in earlier tiles, the predictions are mixed in the logistic
domain, and counts and mixing weights learn from the tile's answers afterwards. Encoder and decoder so see the same past.

All arithmetic is on integers (or on floats that hold integers exactly), so that every machine finds the same
probabilities: a decoder that rounds one of them otherwise would read garbage.

References:
    Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005 (logistic mixing).
    Willems, Shtarkov and Tjalkens, "The Context-Tree Weighting Method", 1995 (counts with a prior of one half).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from slimline.archive.coder import Array, Coder
from slimline.errors import ArchiveError

UNIT = 256  # of the logistic domain
BOUND = 12 * UNIT - 1
TABLES_CRC = 0xBD92313  # of squash, as computed where the format was fixed
MEMORY = 255  # observations after which a context forgets as fast as it learns
RATE = 0.008  # of the mixing weights; with MOST tuned on int8, int4 and int2 files of two convolutional networks
MOST = 64  # observations of one tile that count for the weights' step
SHARE = 1.2  # the initial weights' sum
WIDE = 1100  # contexts: above, only those that were met are touched
LOWEST = 4  # of a probability, in 1 / 65536


@cache
def tables() -> tuple[Array, Array, Array]:
    """``squash [2 * BOUND + 1]``, ``stretch [65536]`` and ``confidence [MEMORY + 1]``.

    ``squash[x + BOUND]`` is ``65536 / (1 + exp(-x / 256))``; ``stretch`` is its inverse; a context that was seen n times speaks with
    ``n / (n + 0.4)`` of its voice.

    Raises:
        ArchiveError: this machine's ``exp`` rounds otherwise than the one that the format was fixed on.
    """
    squash = np.array([min(65535, max(1, round(65536 / (1 + math.exp(-x / UNIT))))) for x in range(-BOUND, BOUND + 1)], np.int64)
    if zlib.crc32(squash.astype("<u2").tobytes()) != TABLES_CRC:
        raise ArchiveError("The tables of the archive's model come out differently on this machine; it can neither read nor write archives.")
    stretch = (np.searchsorted(squash, np.arange(65536)) - BOUND).clip(-BOUND, BOUND).astype(np.float64)
    confidence = np.array([n * 10 * UNIT // (n * 10 + 4) for n in range(MEMORY + 1)], np.float64) / UNIT
    return squash, stretch, confidence


class Stage:
    """One question. ``contexts``: how many values each context has; ``nodes``: variants of the question, told apart in every context."""

    def __init__(self, contexts: Sequence[int], nodes: int = 1) -> None:
        sizes = [c * nodes for c in contexts]
        self.nodes, self.size = nodes, sum(sizes)
        self.offsets = np.cumsum([0, *sizes[:-1]])[:, None]
        self.probability = np.full(self.size, 32768, np.int64)
        self.count = np.zeros(self.size, np.int64)
        self.voice = np.zeros(self.size)  # what a context says in the mixture
        self.weights = np.full(len(sizes), float(int(65536 * SHARE / len(sizes))))
        self.squash, self.stretch, self.confidence = tables()

    def code(self, coder: Coder, contexts: Array, node: Array | int, values: Array | None) -> Array:
        """Bits ``[N]`` in ``contexts [K, N]`` at ``node`` (one, or ``[N]``)."""
        place = contexts * self.nodes + (node + self.offsets) if self.nodes > 1 else contexts + self.offsets
        if len(place) == 1:
            values = coder.bits(self.probability.take(place[0]), values)
            self._learn(place, values)
            return values
        voices = self.voice.take(place)
        mixed = self.squash.take((self.weights @ voices / 65536.0).astype(np.int64) + BOUND, mode="clip")
        values = coder.bits(mixed, values)
        slope = voices @ (values * 65535 - mixed).astype(np.float64)
        self.weights += np.trunc(slope * (RATE * min(values.size, MOST) / values.size / UNIT))
        hit = self._learn(place, values)
        self.voice[hit] = np.floor(self.stretch.take(self.probability[hit]) * self.confidence.take(self.count[hit]))
        return values

    def _learn(self, place: Array, values: Array) -> Array | slice:
        """Count; gives the contexts that were met."""
        found = np.bincount((2 * place + values).ravel(), minlength=2 * self.size)
        zeros, ones = found[0::2], found[1::2]
        hit: Array | slice = slice(None)
        if self.size > WIDE:
            hit = (zeros + ones).nonzero()[0]
            zeros, ones = zeros[hit], ones[hit]
        p, seen, n = self.probability[hit], self.count[hit], zeros + ones
        moved = p + (ones * 65535 - n * p) * 2 // (2 * (seen + n) + 3)
        self.probability[hit] = np.minimum(np.maximum(moved, LOWEST), 65536 - LOWEST)
        self.count[hit] = np.minimum(seen + n, MEMORY)
        return hit
