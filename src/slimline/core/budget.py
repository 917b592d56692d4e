"""What is asked for: limits on the artefact, and how they are written on a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from slimline.core.data import Data, checked
from slimline.errors import UsageError

if TYPE_CHECKING:
    from slimline.core.trial import Measurement

Quantity = Literal["size", "download", "latency", "memory", "macs"]
QUANTITIES: tuple[Quantity, ...] = ("size", "download", "latency", "memory", "macs")
HALF = 0.5  # of all quality in [0, 1]: nobody means to allow it
TIE = 0.3  # what a relative change of bytes weighs against one of milliseconds: two runs of one file differ by a few percent
NOISE = 0.02  # of a latency: two rounds of one file differ by as much
COUNTED_TIE = 0.001  # of the second quantity where the minimised one is counted, without noise: at a tenth of the original's bytes, 0.3 of its multiply-adds would decide alone
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_MILLISECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
_SECONDS = {"": 1.0, "S": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0}


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str, example: str, least: float = 0.0) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in units:
        raise UsageError(f"{what} {text!r} is not understood.", hint=f"Write it like {example}.")
    value = float(found[1]) * units[found[2].upper()]
    if value <= 0 or value < least:
        raise UsageError(f"{what} {text!r} must be {'at least 1' if least else 'above zero'}.", hint=f"Write it like {example}.")
    if math.isinf(value):
        raise UsageError(f"{what} {text!r} is too large.", hint=f"Write it like {example}.")
    return value


def parse_bytes(text: str) -> int:
    """``300KB`` -> 300000; KB = 1,000 bytes, KiB = 1,024."""
    return int(_parse(text, _BYTES, "The size", "300KB or 1.5MB", least=1))


def parse_count(text: str) -> int:
    """``10M`` -> 10000000."""
    return int(_parse(text, _COUNTS, "The number", "10M", least=1))


def parse_milliseconds(text: str) -> float:
    """``2ms`` -> 2.0; the unit must be given."""
    return _parse(text, _MILLISECONDS, "The latency", "2ms or 800us")


def parse_seconds(text: str) -> float:
    """``10m`` -> 600.0; a bare number is in seconds."""
    return _parse(text, _SECONDS, "The time", "10m, 90s or 2h")


_PARSERS: Mapping[str, Callable[[str], float]] = {
    "size_bytes": parse_bytes, "download_bytes": parse_bytes, "memory_bytes": parse_bytes, "latency_ms": parse_milliseconds, "macs": parse_count
}  # fmt: skip


class Drop(Data):
    """How much quality may be lost: in metric units, or a share of the baseline's (``relative``).

    ``percent``: it was written as a percentage, which only means something for a metric in [0, 1].

    Example:
        >>> Drop.parse("1%").allowed(0.9)
        0.01
        >>> Drop.parse("2%rel").allowed(-50.0)
        1.0
    """

    value: float = pydantic.Field(default=0.01, ge=0)
    relative: bool = False
    percent: bool = True

    @classmethod
    def parse(cls, text: str | float) -> Drop:
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%\s*rel|%)?\s*", str(text))
        if not found:
            raise UsageError(f"The drop {text!r} is not understood.", hint="Write it like 1%, 0.01 or 2%rel.")
        number, unit = float(found[1]), (found[2] or "").replace(" ", "")
        if math.isinf(number):
            raise UsageError(f"The drop {text!r} is too large.", hint="Write it like 1%, 0.01 or 2%rel.")
        return cls(value=number / 100 if unit else number, relative=unit == "%rel", percent=unit == "%")

    def allowed(self, baseline: float) -> float:
        """The allowance in metric units, given the baseline's quality.

        Raises:
            UsageError: a percentage with a metric outside [0, 1], or 0.5 and more within it.
        """
        if self.relative:
            return self.value * abs(baseline)
        unit_interval = 0.0 <= baseline <= 1.0
        if self.percent and not unit_interval:
            raise UsageError(
                f"A drop of {self.value * 100:g}% needs a metric in [0, 1], but the original reaches {baseline:g}.",
                hint=f"Give the drop in metric units, or {self.value * 100:g}%rel.",
            )
        if unit_interval and self.value >= HALF:
            raise UsageError(
                f"A drop of {self.value:g} allows half of all quality to be lost (the original reaches {baseline:.3f}).",
                hint=f"Did you mean {self.value:g}%?" if self.value < HALF * 100 else "Write a share of less than a half, like 1%.",
            )
        return self.value


class Violation(Data):
    """A broken limit."""

    quantity: str
    value: float
    limit: float


class Budget(Data):
    """Limits on the artefact. ``None`` is no limit; ``max_drop`` takes ``0.01``, ``"1%"`` or ``"2%rel"``, the others text as the command line has it, too.

    Raises:
        UsageError: a limit that is not understood or not above zero, or one of another name.

    Example:
        >>> Budget(max_drop="1%", size_bytes="300KB").size_bytes
        300000
    """

    size_bytes: int | None = pydantic.Field(default=None, gt=0)
    download_bytes: int | None = pydantic.Field(default=None, gt=0)
    memory_bytes: int | None = pydantic.Field(default=None, gt=0)
    latency_ms: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    macs: int | None = pydantic.Field(default=None, gt=0)
    max_drop: Drop = Drop()
    minimize: Quantity = "latency"
    batch: int = pydantic.Field(default=1, gt=0)
    threads: int = pydantic.Field(default=1, gt=0)

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _explained(cls, given: Any, read: pydantic.ModelWrapValidatorHandler[Budget]) -> Budget:
        with checked("The budget cannot be used", f"It takes {', '.join(cls.model_fields)}."):
            return read(given)

    @pydantic.field_validator("max_drop", mode="before")
    @classmethod
    def _drop(cls, value: object) -> object:
        return Drop.parse(value) if isinstance(value, int | float | str) else value

    @pydantic.field_validator(*_PARSERS, mode="before")
    @classmethod
    def _limit(cls, value: object, about: pydantic.ValidationInfo) -> object:
        return _PARSERS[str(about.field_name)](str(value)) if isinstance(value, str | bool) else value

    def limits(self) -> dict[Quantity, float]:
        """The limits that are set, without the drop."""
        given = {"size": self.size_bytes, "download": self.download_bytes, "latency": self.latency_ms, "memory": self.memory_bytes, "macs": self.macs}
        return {q: float(v) for q in QUANTITIES if (v := given[q]) is not None}

    @property
    def asked(self) -> frozenset[Quantity]:
        """What is minimised or limited.

        Example:
            >>> sorted(Budget(minimize="download", size_bytes=1000).asked)
            ['download', 'size']
        """
        return frozenset({self.minimize, *self.limits()})

    def weights(self, base: Mapping[Quantity, float]) -> dict[Quantity, float]:
        """What one unit of each minimised quantity weighs: relative to ``base``; bytes decide between latencies that are nearly equal.

        Bytes themselves are tied by multiply-adds, not by milliseconds, whose noise would decide. They have no noise and become small, so that next to nothing is left to a tie.

        Example:
            >>> Budget().weights({"latency": 2.0, "size": 100.0})
            {'latency': 0.5, 'size': 0.003}
        """
        second: Quantity = "macs" if self.minimize in ("size", "download") else "size"
        tie = TIE if self.minimize == "latency" else COUNTED_TIE
        return {self.minimize: 1.0 / max(base[self.minimize], 1e-12), second: tie / max(base[second], 1e-12)}

    def objective(self, measurement: Measurement, baseline: Measurement) -> float:
        """What is minimised, of what was measured; the baseline's is one and the tie's weight. Where that is latency, no bytes make up for being slower than the baseline."""
        weights = self.weights({q: baseline.cost(q) for q in QUANTITIES})
        costs = {q: measurement.cost(q) for q in weights}
        if self.minimize == "latency" and costs["latency"] > (1 + NOISE) * baseline.cost("latency"):
            costs["size"] = max(costs["size"], baseline.cost("size"))
        return sum(w * costs[q] for q, w in weights.items())

    def violations(self, measurement: Measurement, baseline: Measurement | None = None) -> tuple[Violation, ...]:
        """Every limit that the measurement breaks; the drop only where both qualities are known."""
        broken = [Violation(quantity=q, value=measurement.cost(q), limit=limit) for q, limit in self.limits().items() if measurement.cost(q) > limit]
        if baseline is not None and baseline.quality is not None and measurement.quality is not None:
            allowed = self.max_drop.allowed(baseline.quality)
            drop = baseline.quality - measurement.quality
            if drop > allowed:
                broken.append(Violation(quantity="drop", value=drop, limit=allowed))
        return tuple(broken)
