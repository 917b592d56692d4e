"""The content of a graph's tensors, each by the model that fits its type and size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from slimline.archive.blocks import Blocks
from slimline.archive.coder import Array, Coder
from slimline.archive.floats import Floats
from slimline.archive.integers import COARSE, FINE, Integers
from slimline.archive.onnx_file import Slot
from slimline.archive.tokens import Tokens
from slimline.errors import ArchiveError

TINY = 16  # bytes: below, an integer tensor is a choice among those seen
FLOATS = {1: 4, 10: 2, 11: 8}  # bytes by TensorProto.DataType
INTEGERS = {2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8"}
PACKED = {21: (4, 8), 22: (4, 0), 25: (2, 2), 26: (2, 0)}  # bits, and what is taken off to centre unsigned values
CENTRE = {2: 128, 4: 1 << 15}
SHAPE = 64  # the same of int64 tensors, which are shapes
BITS = (b"Bits", 0)  # the role of integers stored as planes of bits (targets/_onnx_compact.py)
LONG, LONG_FLOATS = 1 << 16, 1 << 11  # elements of a tensor that is coded in blocks, where the file is
LARGEST = 1 << 52  # magnitudes below are exact in the models' arithmetic


class Tensors:
    """The models of all tensors of one file. ``blocks``: long ones are coded in blocks."""

    def __init__(self, tokens: Tokens, *, blocks: bool) -> None:
        self.tokens = tokens
        self.large = blocks
        self._integers: dict[object, Integers] = {}
        self._floats: dict[object, Floats] = {}
        self._blocks: dict[object, Blocks] = {}
        self._shapes: list[tuple[int, ...]] = []

    def code(self, coder: Coder, slots: Sequence[Slot], contents: Sequence[bytes] | None) -> list[bytes]:
        """The contents, in the slots' order."""
        found: list[bytes] = []
        if contents is not None:
            self._shapes = [tuple(np.frombuffer(c, "<i8").tolist()) for s, c in zip(slots, contents, strict=True) if s.type == 7 and s.role == (b"Bits", 2)]
        vectors: dict[int, Array] = {}  # float tensors so far, of which a later one may be a product
        for place, slot in enumerate(slots):
            given = None if contents is None else contents[place]
            content = self._one(coder, slot, given, vectors)
            if len(content) != slot.length:
                raise ArchiveError("The archive is damaged: a tensor's content does not have the declared length.")
            if slot.type == 1 and slot.length <= 1 << 16 and slot.length % 4 == 0:
                vectors[place] = np.frombuffer(content, "<f4")
            found.append(content)
        return found

    def _one(self, coder: Coder, slot: Slot, given: bytes | None, vectors: dict[int, Array]) -> bytes:
        if slot.type in FLOATS and slot.length % FLOATS[slot.type] == 0:
            with coder.section("floats"):
                return self._float(coder, slot, given, vectors)
        elements = math.prod(slot.dims)
        with coder.section("integers"):
            if slot.type == 2 and slot.role == BITS and len(slot.dims) == 3 and slot.dims[2] == 1 and slot.length == slot.dims[0] * slot.dims[1]:
                return self._planes(coder, slot, given)
            if slot.length <= (SHAPE if slot.type == 7 else TINY):
                return self._tiny(coder, slot, given)
            if slot.type in PACKED and slot.length == (elements * PACKED[slot.type][0] + 7) // 8:
                bits, centre = PACKED[slot.type]
                unpacked = None if given is None else _unpacked(given, bits, elements, signed=not centre)
                if self._flag(coder, "padding", None if unpacked is None or given is None else int(_packed(unpacked, bits) != given)):
                    return self._bytes(coder, slot, given)
                values = self._integer(coder, (slot.type,), slot.dims, None if unpacked is None else unpacked - centre)
                return _packed(values + centre, bits)
            if slot.type in INTEGERS and slot.length == elements * np.dtype(INTEGERS[slot.type]).itemsize:
                return self._whole(coder, slot, given)
            return self._bytes(coder, slot, given)

    def _flag(self, coder: Coder, name: str, value: int | None) -> int:
        return self.tokens.bit(coder, (name,), value)

    def _tiny(self, coder: Coder, slot: Slot, given: bytes | None) -> bytes:
        situations = (("tiny", slot.type, slot.length, slot.role), ("tiny", slot.type, slot.length))

        def spell(data: bytes | None) -> bytes:
            return bytes(self.tokens.number(coder, ("byte", slot.type, i % 8), None if data is None else data[i]) & 255 for i in range(slot.length))

        return self.tokens.choice(coder, situations, given, spell)

    def _whole(self, coder: Coder, slot: Slot, given: bytes | None) -> bytes:
        """Whole bytes per integer; an unsigned byte may hold two integers of four bits."""
        kind, centre = np.dtype(INTEGERS[slot.type]), CENTRE.get(slot.type, 0)
        values = None if given is None else np.frombuffer(given, kind).astype(np.int64)
        if slot.type == 2:
            halves = None if given is None else _unpacked(given, 4, 2 * slot.length, signed=False)
            assert values is not None or halves is None
            if self._flag(coder, "halves", None if values is None or halves is None else int(_entropy(halves, 16) < _entropy(values, 256))):
                rows = slot.dims[0] if slot.dims else 1
                return _packed(self._integer(coder, ("halves",), (rows, 2 * slot.length // max(rows, 1)), None if halves is None else halves - 8) + 8, 4)
        if self._flag(coder, "too large", None if values is None else int(np.abs(values - centre).max() >= LARGEST)):
            return self._bytes(coder, slot, given)
        found = self._integer(coder, (slot.type,), slot.dims, None if values is None else values - centre) + centre
        limits = np.iinfo(kind)
        if found.min() < limits.min or found.max() > limits.max:
            raise ArchiveError("The archive is damaged: an integer is too large for its tensor.")
        return found.astype(kind).tobytes()

    def _planes(self, coder: Coder, slot: Slot, given: bytes | None) -> bytes:
        """Codes of ``dims[0]`` bits, in as many planes of packed bits; their shape is written, and known when it comes as a tensor of its own."""
        bits, width = slot.dims[0], slot.dims[1]
        planes = None if given is None else np.frombuffer(given, np.uint8).reshape(bits, width)
        shape = self._planes_shape(coder, bits, width, planes)
        if not shape:
            return self._bytes(coder, slot, given)
        codes = None if planes is None else np.array([np.unpackbits(p, bitorder="little").astype(np.int64) << b for b, p in enumerate(planes)]).sum(0)
        centre = self.tokens.whole(coder, (("centre", bits),), None if codes is None else int(np.bincount(codes).argmax()))
        values = None if codes is None else codes[: math.prod(shape)] - centre
        found = self._integer(coder, ("planes", bits), shape, values) + centre
        return b"".join(np.packbits((found >> b & 1).astype(np.uint8), bitorder="little").tobytes() for b in range(bits))

    def _planes_shape(self, coder: Coder, bits: int, width: int, planes: Array | None) -> tuple[int, ...]:
        """The codes' shape, by the tensor that will hold it; none where they are no such codes."""
        shape: tuple[int, ...] | None = None
        if planes is not None:
            shape = next((s for s in self._shapes if -(-math.prod(s) // 8) == width), ())
            if not shape or bits > 8 or any(np.unpackbits(p, bitorder="little")[math.prod(shape) :].any() for p in planes):
                shape = ()
        rank = self.tokens.whole(coder, (("planes",),), None if shape is None else len(shape))
        if rank > 8:
            raise ArchiveError("The archive is damaged: a tensor in it has more than eight dimensions.")
        found = tuple(self.tokens.whole(coder, (("planes", i),), None if shape is None else shape[i]) for i in range(rank))
        if rank and (-(-math.prod(found) // 8) != width or bits > 8):
            raise ArchiveError("The archive is damaged: planes of bits do not have the size of what they hold.")
        if rank:
            self.tokens.expect((("tiny", 7, 8 * rank, (b"Bits", 2)), ("tiny", 7, 8 * rank)), np.array(found, "<i8").tobytes())
        return found

    def _bytes(self, coder: Coder, slot: Slot, given: bytes | None) -> bytes:
        values = None if given is None else np.frombuffer(given, np.uint8).astype(np.int64) - 128
        found = self._integer(coder, ("bytes", slot.type), (slot.length,), values)
        return (found + 128).astype(np.uint8).tobytes()

    def _integer(self, coder: Coder, group: tuple[object, ...], dims: tuple[int, ...], values: Array | None) -> Array:
        """Integers ``[N]``, flat (int16 or int64); ``group`` tells which tensors learn from each other."""
        count = math.prod(dims)
        rows, columns = (dims[0], math.prod(dims[1:2])) if len(dims) > 1 else (1, count)
        taps = math.prod(dims[2:])
        top = self.tokens.whole(coder, (("largest", group),), None if values is None else max(1, int(np.abs(values).max())).bit_length() - 1)
        if top >= 52:
            raise ArchiveError("The archive is damaged: an integer in it has more than 52 bits.")
        if self.large and count >= LONG and top <= 7:
            span = 2 << top
            model = self._blocks.setdefault((*group, top), Blocks(2 * span + 1))
            return model.integers(coder, (rows, columns * taps), -span, None if values is None else values.reshape(rows, -1)).ravel()
        shape = (taps, rows, columns)
        arranged = None if values is None else values.reshape(rows, columns, taps).transpose(2, 0, 1)
        found = self._integers.setdefault(group, Integers(COARSE if self.large else FINE)).code(coder, shape, top, arranged)
        return found.transpose(1, 2, 0).ravel()

    def _float(self, coder: Coder, slot: Slot, given: bytes | None, vectors: dict[int, Array]) -> bytes:
        width = FLOATS[slot.type]
        count = slot.length // width
        if slot.type == 1 and len(slot.dims) == 1 and vectors and (product := self._product(coder, count, given, vectors)) is not None:
            return product
        same = None if given is None else int(given == given[:width] * count)
        if count > 1 and self._flag(coder, "constant", same):
            return self._float(coder, Slot(slot.type, (), width, slot.role), None if given is None else given[:width], {}) * count
        if self.large and count >= LONG_FLOATS:
            planes = None if given is None else np.frombuffer(given, np.uint8).reshape(count, width)
            found = np.empty((count, width), np.uint8)
            for plane in range(width):
                model = self._blocks.setdefault(("plane", slot.type, plane), Blocks(256))
                found[:, plane] = model.planes(coder, count, None if planes is None else planes[:, plane])
            return found.tobytes()
        key = (slot.type, min(len(slot.dims), 2), slot.role)
        floats = self._floats.setdefault(key, Floats(width))
        patterns = None if given is None else np.frombuffer(given, f"<u{width}").astype(np.uint64).view(np.int64)
        return floats.code(coder, count, patterns).view(np.uint64).astype(f"<u{width}").tobytes()

    def _product(self, coder: Coder, count: int, given: bytes | None, vectors: dict[int, Array]) -> bytes | None:
        """A vector that is one before times a scalar before: the scale of a bias is its layer's input scale times its weight's."""
        pair: tuple[int, int] | None = None
        if given is not None:
            wanted = np.frombuffer(given, "<f4")
            same = [(i, v) for i, v in reversed(vectors.items()) if v.size == count]
            single = [(i, v[0]) for i, v in reversed(vectors.items()) if v.size == 1]
            with np.errstate(all="ignore"):
                pair = next(((i, j) for i, v in same for j, s in single if i != j and (v * s).tobytes() == wanted.tobytes()), None)
        if not self._flag(coder, "product", None if given is None else int(pair is not None)):
            return None
        places = list(reversed(vectors))
        try:
            i, j = (places[self.tokens.whole(coder, (("factor", k),), None if pair is None else places.index(pair[k]))] for k in (0, 1))
        except IndexError as error:
            raise ArchiveError("The archive is damaged: a vector is the product of tensors that are not there.") from error
        with np.errstate(all="ignore"):
            return bytes((vectors[i] * vectors[j][:1]).astype("<f4").tobytes())


def _unpacked(data: bytes, bits: int, count: int, *, signed: bool) -> Array:
    """Integers of ``bits`` bits, the first in the lowest bits of a byte."""
    raw = np.frombuffer(data, np.uint8)
    found = np.stack([(raw >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], 1).ravel()[:count].astype(np.int64)
    return np.where(found >> (bits - 1), found - (1 << bits), found) if signed else found


def _packed(values: Array, bits: int) -> bytes:
    per = 8 // bits
    padded = np.zeros(-(-values.size // per) * per, values.dtype)
    padded[: values.size] = values & ((1 << bits) - 1)
    parts = padded.reshape(-1, per) << np.arange(0, 8, bits, dtype=values.dtype)
    return bytes(parts.sum(1, dtype=np.uint8).tobytes())


def _entropy(values: Array, alphabet: int) -> float:
    """Bits of all values under their own frequencies."""
    counts = np.bincount(values, minlength=alphabet)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())
