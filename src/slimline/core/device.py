"""Device profiles: what a machine has, which runtime it takes, what fits it, and what its operations take."""

from __future__ import annotations

import importlib.resources
import os
import platform
import tomllib
from pathlib import Path
from typing import Literal

import pydantic

from slimline.core.budget import Quantity
from slimline.core.data import Data, checked
from slimline.errors import UsageError

HOST = "host"
EXTENSIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")  # as /proc/cpuinfo writes them


class Rate(Data):
    """What an operation takes: ``milliseconds = call_us / 1000 + work * nanoseconds / 1e6``.

    ``work``: multiply-adds where the operation has them, else values written.
    """

    operation: str
    executes: Literal["integer", "float"]
    call_us: float = pydantic.Field(ge=0)
    nanoseconds: float = pydantic.Field(ge=0)


class LatencyTable(Data):
    """Rates, and how they came about. ``check_estimated_ms`` and ``check_measured_ms``: of a whole model that the rates were not fitted to."""

    source: str
    rates: tuple[Rate, ...]
    check_estimated_ms: float | None = None
    check_measured_ms: float | None = None

    def rate(self, operation: str, executes: str) -> Rate | None:
        return next((r for r in self.rates if (r.operation, r.executes) == (operation, executes)), None)


class Device(Data):
    """A profile. Bytes are what a model may use at most by default; ``sources`` says where each number comes from.

    ``target``: the runtime that is used unless another of ``targets`` (empty: any) is asked for. ``flash_bytes`` limits the artefact's
    size, ``ram_bytes`` its memory. ``operations``: the runtime's own names of what may be used; empty: whatever it executes. ``host`` is looked up on the spot.

    Example:
        >>> Device.load("cortex-m4-256k").target
        'litert-micro'
    """

    name: str
    title: str
    target: str
    targets: tuple[str, ...] = ()
    cores: int = pydantic.Field(gt=0)
    isa: str
    mhz: int | None = None
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    bandwidth_gb_s: float | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    minimize: Quantity | None = None
    operations: tuple[str, ...] = ()
    sources: dict[str, str]
    latency: LatencyTable | None = None

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Names of the profiles that are shipped."""
        folder = importlib.resources.files("slimline.devices")
        return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))

    @classmethod
    def load(cls, name: str) -> Device:
        """A shipped profile, or a file ``NAME.toml`` of one's own.

        Raises:
            UsageError: there is none, or it is not valid.
        """
        if name.endswith(".toml"):
            try:
                text = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                said = getattr(error, "strerror", None) or error
                raise UsageError(f"The device profile {name} cannot be read: {said}.", hint="Give the file that `devices calibrate` wrote.") from error
        elif name in cls.known():
            text = importlib.resources.files("slimline.devices").joinpath(f"{name}.toml").read_text()
        else:
            raise UsageError(f"There is no device {name!r}.", hint=f"Known: {', '.join(cls.known())}; or give a file NAME.toml.")
        try:
            with checked(f"{name} is no device profile", "Compare with `slimline devices show host`."):
                found = cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{name} is not TOML: {error}.", hint="Compare with `slimline devices show host`.") from error
        return found.model_copy(update=_this_machine()) if name == HOST else found

    def toml(self) -> str:
        """The profile as a file, which ``load`` reads."""
        plain = self.model_dump(exclude_none=True, exclude={"sources", "latency"})
        lines = [f"{key} = {_value(value)}" for key, value in plain.items() if value != () or key == "targets"]
        lines += ["", "[sources]", *(f"{key} = {_value(value)}" for key, value in self.sources.items())]
        if self.latency is not None:
            table = self.latency.model_dump(exclude_none=True, exclude={"rates"})
            lines += ["", "[latency]", *(f"{key} = {_value(value)}" for key, value in table.items())]
            for rate in self.latency.rates:
                lines += ["", "[[latency.rates]]", *(f"{key} = {_value(value)}" for key, value in rate.model_dump().items())]
        return "\n".join(lines) + "\n"


def _this_machine() -> dict[str, object]:
    """What ``host`` has: its processors, what they execute, its memory; as far as the operating system tells."""
    found: dict[str, object] = {"cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    known = [e for e in EXTENSIONS if e in flags]
    found["isa"] = f"{platform.machine()} with {', '.join(known)}" if known else platform.machine()
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", ())):
        found["ram_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found


def _value(value: object) -> str:
    import json

    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
