"""Choices one after the other: what a graph is made of.

A choice is coded as its place in a list of what was chosen before in the same situation, most recent first. Several
situations can be given, the most telling first. What was never chosen is spelled out.

The predictions of one bit are mixed as in ``mixing``, but one bit at a time: graphs are small, and each node depends on the last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar, cast

from slimline.archive.coder import Coder
from slimline.archive.mixing import BOUND, tables
from slimline.errors import ArchiveError

T = TypeVar("T", bound=Hashable)
LIMIT = 60  # observations after which a context forgets as fast as it learns
LOWEST = 64  # of a probability, in 1 / 65536
TRIED = (6, 12)  # candidates that are tried of a list: of the more telling situations, of the last
STEP = 1 / 1024 / 256
LONGEST = 1 << 20  # of a string


class Tokens:
    """The model and what it has seen."""

    def __init__(self) -> None:
        self._contexts: dict[Hashable, list[int]] = {}  # probability, count
        self._weights: dict[Hashable, list[float]] = {}
        self._chosen: dict[Hashable, list[Hashable]] = {}
        squash, stretch, _ = tables()
        self._squash: list[int] = squash.tolist()
        self._stretch: list[int] = [int(x) for x in stretch.tolist()]

    def copy(self) -> Tokens:
        """A model that knows the same and learns on its own."""
        new = Tokens()
        new._contexts = {k: v[:] for k, v in self._contexts.items()}
        new._weights = {k: v[:] for k, v in self._weights.items()}
        new._chosen = {k: v[:] for k, v in self._chosen.items()}
        return new

    def trusted(self, most: int) -> Tokens:
        """The same, each context as if seen ``most`` times at most: what comes next teaches faster."""
        for slot in self._contexts.values():
            slot[1] = min(slot[1], most)
        return self

    def bit(self, coder: Coder, contexts: Sequence[Hashable], value: int | None) -> int:
        """One bit, predicted by each of ``contexts``."""
        slots = [self._contexts.setdefault(c, [32768, 0]) for c in contexts]
        weights = self._weights.setdefault((contexts[0].__class__, len(slots)), [0.7] * len(slots)) if len(slots) > 1 else [1.0]
        voices = [self._stretch[p] * n / (n + 0.4) for p, n in slots]
        mixed = 0.0
        for weight, voice in zip(weights, voices, strict=True):
            mixed += weight * voice
        p = min(max(self._squash[min(max(int(mixed), -BOUND), BOUND) + BOUND], LOWEST), 65536 - LOWEST)
        value = coder.bit(p, value)
        if len(slots) > 1:
            error = (value * 65535 - p) * STEP / 256
            for i, voice in enumerate(voices):
                weights[i] += error * voice
        for slot in slots:
            p, n = slot
            slot[0] = min(max(p + (value * 65535 - p) * 2 // (2 * n + 3), LOWEST), 65536 - LOWEST)
            slot[1] = min(n + 1, LIMIT)
        return value

    def number(self, coder: Coder, context: Hashable, value: int | None) -> int:
        """A non-negative integer below 2 ** 64, by its length and the bits below the leading one (Elias gamma, adaptive).

        Raises:
            ArchiveError: it would be longer.
        """
        length = 0 if value is None else (value + 1).bit_length()
        bits = 1
        while self.bit(coder, ((context, "length", bits),), None if value is None else int(bits < length)):
            bits += 1
            if bits > 65:
                raise ArchiveError("The archive is damaged: a number in it has more than 64 bits.")
        found = 1
        for place in range(bits - 2, -1, -1):
            key = (context, bits, found) if bits - place < 6 else (context, place)
            found = 2 * found + self.bit(coder, (key,), None if value is None else ((value + 1) >> place) & 1)
        return found - 1

    def text(self, coder: Coder, context: Hashable, value: bytes | None, like: bytes = b"") -> bytes:
        """Bytes, letter by letter; ``like``: a string that it may resemble."""
        count = self.number(coder, (context, "letters"), None if value is None else len(value))
        if count > LONGEST:
            raise ArchiveError(f"The archive is damaged: a string in it has {count:,} letters.")
        found = bytearray()
        at = 0
        for i in range(count):
            guess = like[at] if at < len(like) else -1
            keys = (
                ("1", bytes(found[-1:])),
                ("3", bytes(found[-3:])),
                ("5", bytes(found[-5:])),
                ("like", guess, at - i == 0 or like[at - 1 : at] == found[-1:]),
            )
            letter = 1
            for place in range(7, -1, -1):
                letter = 2 * letter + self.bit(coder, tuple((*k, letter) for k in keys), None if value is None else (value[i] >> place) & 1)
            found.append(letter - 256)
            at = at + 1 if letter - 256 == guess else max(like.find(found[-1], at) + 1, at + 1)
        return bytes(found)

    def choice(self, coder: Coder, situations: Sequence[Hashable], value: T | None, spell: Callable[[T | None], T]) -> T:
        """``value``, or what the coder reads; ``spell(value)`` codes one that none of the situations knows."""
        passed: set[Hashable] = set()
        for depth, situation in enumerate(situations):
            known = self._chosen.get(situation, ())
            rank = 0
            for candidate in known:
                if candidate in passed:
                    continue
                last = depth == len(situations) - 1
                if rank == TRIED[last]:
                    break
                keys = ((situation, rank), (depth, len(situations), rank, min(len(known), 3)))
                if self.bit(coder, keys, None if value is None else int(value == candidate)):
                    return self._remember(situations, cast(T, candidate))
                passed.add(candidate)
                rank += 1
        return self._remember(situations, spell(value))

    def expect(self, situations: Sequence[Hashable], value: Hashable) -> None:
        """Take ``value`` for the likeliest choice."""
        self._remember(situations, value)

    def _remember(self, situations: Sequence[Hashable], value: T) -> T:
        for situation in situations:
            known = self._chosen.setdefault(situation, [])
            if value in known:
                known.remove(value)
            known.insert(0, value)
        return value

    def whole(self, coder: Coder, situations: Sequence[Hashable], value: int | None) -> int:
        """A choice among integers that are new as numbers."""
        return self.choice(coder, situations, value, lambda v: self.number(coder, situations[-1], v))

    def string(self, coder: Coder, situations: Sequence[Hashable], value: bytes | None) -> bytes:
        """A choice among strings."""
        return self.choice(coder, situations, value, lambda v: self.text(coder, situations[-1], v))
