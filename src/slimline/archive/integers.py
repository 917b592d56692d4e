"""Integer tensors: weights of 2 to 8 bits, biases, indices.

A number becomes a chain of questions: is it zero, negative, at least 2, 4, 8, ... in magnitude, and then the bits below the
leading one. What the first of them are answered with depends on how large the numbers nearby are: those
of the same output channel, of the same input channel, and of the same kernel. A tensor is walked one kernel position
after the other, each cut into tiles of outputs x inputs, so that all of these are known before a tile is coded.

References:
    Marpe, Schwarz and Wiegand, "Context-Based Adaptive Binary Arithmetic Coding in the H.264/AVC Video Compression
    Standard", 2003 (binarization and contexts from neighbours).
    Kirchhoffer et al., "Overview of the Neural Network Compression and Representation (NNR) Standard", 2021 (DeepCABAC).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from slimline.archive.coder import Array, Coder
from slimline.archive.mixing import Stage

SIZES, COLUMNS, KERNEL, NEAR, SIGNED = 64, 48, 24, 6, 81  # values of each context
CONTEXTS = (SIZES, COLUMNS, KERNEL * NEAR, SIGNED)
FRACTION = 256  # of mean magnitudes
TOP = 7  # leading bits that are told apart by those below them: all that 8-bit numbers have
FIRST = 8  # numbers in the first tile
FINE, COARSE = 512, 8192  # numbers in a tile at least, for small files and for large ones
PARTS, SURPRISE = 16, 200.0  # a tile is cut into so many parts where it would cost so many bits more than it should
SEED = 64  # numbers in the first rows of a tensor
TILES = 32  # that a tensor is cut into at most (but one per kernel position)
LARGEST = 1 << 20  # magnitudes count as this at most, so that products of means stay within 64 bits


@cache
def _classes() -> Array:
    """Quarter octaves of 1 .. 65535: ``floor(4 log2 x)``, in integers."""
    return np.array([0, *((x**4).bit_length() - 1 for x in range(1, 1 << 16))], np.int64)


def _quarters(value: Array) -> Array:
    return _classes().take(value, mode="clip")


Tile = tuple[int, slice, slice]


class Integers:
    """The model of all tensors of one width; what it learns from one it knows for the next."""

    def __init__(self, fewest: int = FINE) -> None:
        self.fewest = fewest
        self._zero = Stage(CONTEXTS)
        self._sign = Stage((1, SIGNED, 49, 32))
        self._larger: list[Stage] = []
        self._below = (Stage((SIZES,), TOP + 1), Stage((SIZES,), 2 * TOP + 2))
        self._lowest = Stage((1,), 16 * TOP + 16)
        self._split = Stage((1,))
        self._seen = self._nonzero = 0

    def code(self, coder: Coder, shape: tuple[int, ...], exponents: int, values: Array | None) -> Array:
        """A tensor ``[taps, outputs, inputs]`` (int64) whose magnitudes are below ``2 ** (exponents + 1)``."""
        walk = _Walk(shape, values)
        for whole in walk.tiles(self.fewest):
            for tile in self._pieces(coder, whole, None if values is None else values[whole]):
                contexts, near = walk.contexts(tile)
                given = None if values is None else values[tile].ravel()
                walk.learn(tile, self._numbers(coder, contexts, near, exponents, given))
        return walk.values

    def _pieces(self, coder: Coder, tile: Tile, values: Array | None) -> Iterator[Tile]:
        """The tile; in parts while little was seen, none of them more than that, and where it is unlike what was seen: a wrong model pays for every question."""
        tap, line, post = tile
        size = (line.stop - line.start) * (post.stop - post.start)
        cut = None
        if self._seen:
            surprising = None if values is None else np.array([int(_surprise(int(np.count_nonzero(values)), size, self._nonzero, self._seen))])
            if self._split.code(coder, np.zeros((1, 1), np.int64), 0, surprising)[0]:
                cut = max(FIRST, size // PARTS)
        top = line.start
        while top < line.stop:
            height = min(line.stop - top, max(1, (cut or max(FIRST, self._seen)) // (post.stop - post.start)))
            left = post.start
            while left < post.stop:
                width = min(post.stop - left, max(1, (cut or max(FIRST, self._seen)) // height))
                yield tap, slice(top, top + height), slice(left, left + width)
                self._seen += height * width
                left += width
            top += height

    def _numbers(self, coder: Coder, contexts: Array, signs: Array, exponents: int, given: Array | None) -> Array:
        """One tile's numbers ``[N]``."""
        size = None if given is None else np.abs(given)
        found = self._zero.code(coder, contexts, 0, None if size is None else (size > 0).astype(np.int64))
        alive = (found > 0).nonzero()[0]
        self._nonzero += alive.size
        if not alive.size:
            return found
        negative = self._sign.code(coder, signs[:, alive], 0, None if given is None else (given[alive] < 0).astype(np.int64))
        magnitude, leading = found.copy(), np.zeros_like(found)
        sign = np.ones_like(found)
        sign[alive] -= 2 * negative
        for exponent in range(exponents):
            if exponent == len(self._larger):
                self._larger.append(Stage(CONTEXTS))
            bit = self._larger[exponent].code(coder, contexts[:, alive], 0, None if size is None else (size[alive] >= 2 << exponent).astype(np.int64))
            alive = alive[bit == 1]
            if not alive.size:
                break
            leading[alive] = exponent + 1
        magnitude <<= leading
        for level in range(1, int(leading.max()) + 1):
            alive = (leading >= level).nonzero()[0]
            top = leading[alive]
            bit_values = None if size is None else (size[alive] >> (top - level)) & 1
            if level <= len(self._below):
                node = np.minimum(top, TOP)
                if level == 2:
                    node = 2 * node + ((magnitude[alive] >> (top - 1)) & 1)
                bit = self._below[level - 1].code(coder, contexts[:1, alive], node, bit_values)
            else:
                bit = self._lowest.code(coder, np.zeros((1, alive.size), np.int64), 16 * np.minimum(top, TOP) + min(level, 15), bit_values)
            magnitude[alive] |= bit << (top - level)
        result: Array = magnitude * sign
        return result


class _Walk:
    """Tiles of one tensor in order, and what is known before each."""

    def __init__(self, shape: tuple[int, ...], values: Array | None) -> None:
        self.shape = shape
        taps, rows, columns = shape
        self.values = np.zeros(shape, np.int64)
        self.width = math.isqrt(taps) if math.isqrt(taps) ** 2 == taps else taps
        self.rows, self.columns = np.zeros((2, rows), np.int64), np.zeros((2, columns), np.int64)  # sums of magnitudes, of values
        self.row_count, self.column_count = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
        self.kernel = np.zeros((rows, columns), np.int64)
        self.total = self.count = 0

    def tiles(self, fewest: int) -> list[Tile]:
        taps, rows, columns = self.shape
        aim = max(fewest, rows * columns * taps // TILES)
        cuts = max(1.0, math.sqrt(rows * columns / aim))
        down = min(rows, round(cuts))
        across = min(columns, max(1, -(-rows * columns // (aim * down))))
        posts = [slice(columns * i // across, columns * (i + 1) // across) for i in range(across)]
        height, top, first = max(1, SEED // columns), 0, []
        while top < rows:  # at first few rows at a time, from which the columns' sizes are learnt
            height = min(height, rows - top, -(-rows // down))
            first.append(slice(top, top + height))
            top, height = top + height, 2 * height
        lines = [slice(rows * i // down, rows * (i + 1) // down) for i in range(down)]
        return [(0, line, post) for line in first for post in posts] + [(t, line, post) for t in range(1, taps) for line in lines for post in posts]

    def contexts(self, tile: Tile) -> tuple[Array, Array]:
        """``[4, N]`` for magnitudes, ``[4, N]`` for signs."""
        tap, line, post = tile
        mean = max(1, (self.total + 8) * FRACTION // (self.count + 8)) if self.count else 2 * FRACTION
        row = ((self.rows[0, line] * FRACTION + 2 * mean) // (self.row_count[line] + 2))[:, None]
        column = ((self.columns[0, post] * FRACTION + 2 * mean) // (self.column_count[post] + 2))[None, :]
        expected = row * column // mean
        inside = np.zeros_like(expected)
        if tap:
            inside = self.kernel[line, post] * FRACTION // tap
            expected = (expected * 2 + inside * tap) // (2 + tap)
        left = self.values[tap - 1, line, post] if tap % self.width else np.zeros_like(expected)
        above = self.values[tap - self.width, line, post] if tap >= self.width else np.zeros_like(expected)
        near_left, near_above = _short(left), _short(above)
        shape = expected.shape
        contexts = np.empty((4, *shape), np.int64)
        contexts[0] = np.minimum(np.maximum(_quarters(expected + 8) - 12, 0), SIZES - 1)
        contexts[1] = np.minimum(np.maximum(_quarters(column + 4) // 2 - 4, 0), COLUMNS - 1)
        contexts[2] = (np.minimum(_quarters(inside + 4) // 2 - 3, KERNEL - 1) if tap else 0) * NEAR + np.minimum(np.abs(near_left), NEAR - 1)
        contexts[3] = (near_left + 4) * 9 + near_above + 4
        signs = np.zeros((4, *shape), np.int64)
        signs[1] = contexts[3]
        signs[2] = _drift(self.rows[1, line])[:, None] * 7 + _drift(self.columns[1, post])[None, :]
        signs[3] = min(tap, 31)
        return contexts.reshape(4, -1), signs.reshape(4, -1)

    def learn(self, tile: Tile, numbers: Array) -> None:
        _tap, line, post = tile
        values = numbers.reshape(line.stop - line.start, post.stop - post.start)
        size = np.minimum(np.abs(values), LARGEST)
        self.values[tile] = values
        self.rows[0, line] += size.sum(1)
        self.rows[1, line] += values.sum(1)
        self.columns[0, post] += size.sum(0)
        self.columns[1, post] += values.sum(0)
        self.row_count[line] += values.shape[1]
        self.column_count[post] += values.shape[0]
        self.kernel[line, post] += size
        self.total, self.count = self.total + int(size.sum()), self.count + size.size


def _surprise(ones: int, count: int, seen_ones: int, seen: int) -> bool:
    """Whether so many ones among ``count`` take ``SURPRISE`` bits more under what was seen than under their own frequency."""
    expected, found = (seen_ones + 1) / (seen + 2), (ones + 1e-9) / (count + 2e-9)
    return count * (found * math.log2(found / expected) + (1 - found) * math.log2((1 - found) / (1 - expected))) > SURPRISE


def _short(values: Array) -> Array:
    """-4 .. 4: the sign, and the magnitude in steps of 1, 2-7, 8-31 and more."""
    size = _quarters(np.abs(values) * 2 + 1) // 8
    classes: Array = np.sign(values) * np.minimum(size + (values != 0), 4)
    return classes


def _drift(sums: Array) -> Array:
    """0 .. 6: which way, and how far, a row's or column's values lean."""
    classes: Array = np.sign(sums) * np.minimum(_quarters(np.abs(sums) * 64 + 4) // 12, 3) + 3
    return classes
