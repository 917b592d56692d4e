"""Large tensors: symbols under tables that are counted anew after each block, fast enough for tens of millions of symbols.

Nothing is written for the tables: both sides count the blocks before. Integers are told apart by how large their
row is (one small number per row is written) and how large their column was so far.
"""

from __future__ import annotations

import numpy as np

from slimline.archive.coder import Array, Coder
from slimline.archive.integers import Integers

BLOCK = 1 << 17  # symbols in a block at most; the first are smaller
CLASSES = 48


class Blocks:
    """The tables of one alphabet: symbols ``0 .. alphabet - 1``."""

    def __init__(self, alphabet: int) -> None:
        self.counts = np.full((CLASSES, alphabet), 1.0 / 16)
        self._heights = Integers()

    def integers(self, coder: Coder, shape: tuple[int, int], lowest: int, values: Array | None) -> Array:
        """``[rows, columns]``, int64; ``lowest`` is what symbol 0 stands for."""
        rows, columns = shape
        heights = None if values is None else _height(np.abs(values).sum(1) * 256 // columns)
        heights = self._heights.code(coder, (1, 1, rows), 7, None if heights is None else heights.reshape(1, 1, rows)).reshape(rows)
        found = np.empty(shape, np.int16)
        sums, count = np.zeros(columns, np.int64), 0
        start, step = 0, max(1, 512 // columns)
        while start < rows:
            stop = min(rows, start + step)
            wide = (
                _height((sums + 4) * 256 // (count + 2)) - _height(np.array((sums.sum() + 4) * 256 // (count * columns + 2)))
                if count
                else np.zeros(columns, np.int64)
            )
            classes = np.clip(heights[start:stop, None] + wide[None, :], 0, CLASSES - 1).ravel()
            block = self.code(coder, classes, None if values is None else values[start:stop].ravel() - lowest).reshape(stop - start, columns) + lowest
            found[start:stop] = block
            sums, count = sums + np.abs(block).sum(0), count + stop - start
            start, step = stop, max(1, min(2 * step, BLOCK // columns))
        return found

    def planes(self, coder: Coder, count: int, values: Array | None) -> Array:
        """Bytes ``[count]`` without neighbours that tell anything."""
        found = np.empty(count, np.uint8)
        start, step = 0, 256
        while start < count:
            stop = min(count, start + step)
            classes = np.zeros(stop - start, np.int64)
            found[start:stop] = self.code(coder, classes, None if values is None else values[start:stop].astype(np.int64))
            start, step = stop, min(2 * step, BLOCK)
        return found

    def code(self, coder: Coder, classes: Array, symbols: Array | None) -> Array:
        """One block: the symbols of each class under what was counted in it, and in all classes together, before."""
        found = np.empty(classes.size, np.int64)
        order = np.argsort(classes.astype(np.uint8), kind="stable")
        sizes = np.bincount(classes, minlength=CLASSES)
        everything = self.counts.sum(0)
        everything = everything / everything.sum()
        at = 0
        for which in sizes.nonzero()[0]:
            place = order[at : at + sizes[which]]
            at += sizes[which]
            table = self.counts[which] + 2 * everything
            found[place] = coder.symbols(table / table.sum(), place.size, None if symbols is None else symbols[place])
        np.add.at(self.counts, (classes, found), 1.0)
        return found


def _height(mean: Array) -> Array:
    """Half octaves of a mean magnitude in 1 / 256, 0 .. 31."""
    exact = np.maximum(mean, 1).astype(np.int64)
    classes: Array = np.minimum(np.frexp((exact * exact).astype(np.float64))[1] - 1, 31).astype(np.int64)
    return classes
