"""Bits under probabilities, to bytes and back: the native range coder of ``constriction``, and nothing else.

Models are written once, for both directions: they ask ``bits(probability, values)``. An ``Encoder`` is given
the values and hands them back; a ``Decoder`` is given none and hands back what it reads.

References:
    Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979.
    Bamler, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS)", 2022 (``constriction``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from slimline.errors import ArchiveError

ONE = 1 << 16
Array = np.ndarray[Any, Any]


class Coder(Protocol):
    """One direction. Probabilities are of a 1, in units of 1 / 65536, strictly between 0 and 65536."""

    def bits(self, probability: Array, values: Array | None) -> Array:
        """Bits ``[N]`` (int64) under ``probability [N]``."""
        ...

    def bit(self, probability: int, value: int | None) -> int: ...

    def symbols(self, probabilities: Array, count: int, values: Array | None) -> Array:
        """``count`` symbols ``[count]`` (int64) under one distribution ``probabilities [A]``, float64."""
        ...

    def section(self, name: str) -> Any:
        """Within ``with coder.section(name):`` bits count as that part's."""
        ...


class Encoder:
    """Collects; ``finish`` gives the bytes.

    Example:
        >>> encoder = Encoder()
        >>> _ = encoder.bits(np.full(1000, 65000), np.ones(1000, np.int64))
        >>> len(encoder.finish()), round(sum(encoder.ideal().values()) / 8, 2)
        (4, 1.48)
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, Array, Array]] = []  # section, probabilities, bits; or distribution, symbols
        self._single: list[int] = []
        self._name = ""

    def bits(self, probability: Array, values: Array | None) -> Array:
        assert values is not None
        self._flush()
        self._parts.append((self._name, probability, values))
        return values

    def bit(self, probability: int, value: int | None) -> int:
        assert value is not None
        self._single += (probability, value)
        return value

    def symbols(self, probabilities: Array, count: int, values: Array | None) -> Array:
        assert values is not None
        self._flush()
        self._parts.append((f"{self._name}\0", probabilities, values))
        return values

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self._flush()
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._flush()
            self._name = before

    def _flush(self) -> None:
        if self._single:
            pairs = np.array(self._single, np.int64).reshape(-1, 2)
            self._parts.append((self._name, pairs[:, 0], pairs[:, 1]))
            self._single = []

    def finish(self) -> bytes:
        """The whole stream."""
        import constriction

        self._flush()
        stream = constriction.stream
        coder, bernoulli = stream.queue.RangeEncoder(), stream.model.Bernoulli(perfect=False)
        run: list[tuple[Array, Array]] = []

        def write() -> None:
            if run:
                coder.encode(np.concatenate([v for _, v in run]).astype(np.int32), bernoulli, np.concatenate([p for p, _ in run]) / ONE)
                run.clear()

        for name, p, values in self._parts:
            if name.endswith("\0"):
                write()
                coder.encode(values.astype(np.int32), stream.model.Categorical(p, perfect=False))
            else:
                run.append((p, values))
        write()
        return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))  # the decoder reads zeros past the end

    def ideal(self) -> dict[str, float]:
        """The code length under the model, in bits, by section."""
        self._flush()
        found: dict[str, float] = {}
        for name, p, values in self._parts:
            chance = p[values] if name.endswith("\0") else np.where(values == 1, p, ONE - p) / ONE
            found[name.rstrip("\0")] = found.get(name.rstrip("\0"), 0.0) - float(np.log2(chance).sum())
        return found


class Decoder:
    """Reads what an ``Encoder`` wrote.

    Raises:
        ArchiveError: from any call, where the bytes cannot be what an encoder wrote.
    """

    def __init__(self, data: bytes) -> None:
        import constriction

        stream = constriction.stream
        padded = data + bytes(-len(data) % 4)
        self._coder = stream.queue.RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))
        self._bernoulli = stream.model.Bernoulli(perfect=False)
        self._categorical = stream.model.Categorical
        self._one = np.empty(1)

    def bits(self, probability: Array, values: Array | None) -> Array:
        try:
            found: Array = self._coder.decode(self._bernoulli, probability / ONE)
        except AssertionError as error:
            raise ArchiveError("The archive is damaged: its coded part does not fit its model.") from error
        return found.astype(np.int64)

    def bit(self, probability: int, value: int | None) -> int:
        self._one[0] = probability / ONE
        try:
            return int(self._coder.decode(self._bernoulli, self._one)[0])
        except AssertionError as error:
            raise ArchiveError("The archive is damaged: its coded part does not fit its model.") from error

    def symbols(self, probabilities: Array, count: int, values: Array | None) -> Array:
        try:
            found: Array = self._coder.decode(self._categorical(probabilities, perfect=False), count)
        except AssertionError as error:
            raise ArchiveError("The archive is damaged: its coded part does not fit its model.") from error
        return found.astype(np.int64)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        yield
