"""A runtime on a device that is not this machine: the file runs here, its latency comes from the device's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from slimline.core.contracts import Artifact, Operation, Target
from slimline.core.device import Device, LatencyTable
from slimline.core.samples import Samples
from slimline.core.trial import Latency
from slimline.errors import LoweringError, UsageError


class OnDevice:
    """A target with a device's limits: operations that it may use, and latencies estimated from its table where it has one.

    Everything else is the target's own, run on this machine.
    """

    def __init__(self, target: Target, device: Device) -> None:
        self.target = target
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def lower(self, program: Any, example: Samples) -> Artifact:
        """As the target's.

        Raises:
            LoweringError: an operation that the device's profile does not list.
        """
        artifact = self.target.lower(program, example)
        if self.device.operations:
            used = {o.type for o in self._untimed(artifact, example)}
            missing = sorted(used - set(self.device.operations))
            if missing:
                raise LoweringError(
                    f"{self.device.name} does not execute {', '.join(missing)}.",
                    hint=f"It executes {', '.join(self.device.operations)}: `slimline devices show`.",
                )
        return artifact

    def _untimed(self, artifact: Artifact, example: Samples) -> tuple[Operation, ...]:
        untimed = getattr(self.target, "untimed", None)
        return untimed(artifact) if untimed is not None else self.target.operations(artifact, example)

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1) -> tuple[Operation, ...]:
        """With the table's times."""
        table = self.device.latency
        if table is None:
            return self.target.operations(artifact, example, threads=threads)
        return tuple(replace(o, milliseconds=milliseconds(table, o), backend=f"{o.backend}, estimate") for o in self._untimed(artifact, example))

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        """The sum over the operations by the table, an estimate; the target's own measurement where there is no table."""
        table = self.device.latency
        if table is None:
            return self.target.latency(artifacts, example, batch=batch, threads=threads, seconds=seconds)
        found = []
        for artifact in artifacts:
            total = batch * sum(milliseconds(table, o) for o in self._untimed(artifact, example))
            found.append(Latency(median=total, p95=total, runs=1, threads=1, batch=batch, estimated=True))
        return tuple(found)


def milliseconds(table: LatencyTable, operation: Operation) -> float:
    """What the table says; an operation without a rate takes what an addition of as many values takes, at most nothing."""
    rate = table.rate(operation.type, operation.executes) or table.rate("ADD", operation.executes) or table.rate("ADD", "integer")
    return 0.0 if rate is None else rate.call_us / 1e3 + (operation.work or 0) * rate.nanoseconds / 1e6


def on_device(target: Target, device: Device) -> Target:
    """The target as it is for ``host``, else with the device's limits.

    Raises:
        UsageError: the device does not take this target, or its table needs what the target cannot tell.
    """
    if not device.targets:
        return target
    if target.name not in device.targets:
        raise UsageError(f"{device.name} does not run {target.name}.", hint=f"It runs {', '.join(device.targets)}.")
    if device.latency is not None and not hasattr(target, "untimed"):
        raise UsageError(
            f"The latency table of {device.name} is for .tflite files; {target.name} has no operations that it knows.", hint="Use --target litert."
        )
    return cast(Target, OnDevice(target, device))
