"""A device's latency table: small .tflite files run on it through any command, and rates fitted to what it says."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import optimize

from slimline.core.device import LatencyTable, Rate
from slimline.errors import UsageError
from slimline.targets._device import milliseconds
from slimline.targets._tflite_file import File, Grid, Tensor
from slimline.targets._tflite_reading import Reading

TIMEOUT = 300.0  # seconds for one file
GRID = Grid((0.05,), 0)
Executes = Literal["integer", "float"]
CONVOLUTIONS = ((8, 16, 16, 3), (16, 16, 16, 3), (16, 32, 32, 1), (16, 32, 64, 3))  # side, channels in, channels out, kernel
DEPTHWISE = ((8, 16), (16, 32), (24, 64))  # side, channels
LINEAR = ((64, 64), (256, 128), (512, 256))
KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD")


@dataclass(frozen=True)
class Benchmark:
    """A file of one operation (or, with an empty ``operation``, of a whole model)."""

    operation: str
    executes: Executes
    payload: bytes


class Builder:
    """A file of layers with constant weights; what they hold does not matter for time."""

    def __init__(self, executes: Executes, shape: tuple[int, ...]) -> None:
        self.file, self.executes = File(), executes
        self.value = self.file.tensor(self._tensor(shape, "input"))
        self.file.inputs = [self.value]

    def _tensor(self, shape: tuple[int, ...], name: str = "") -> Tensor:
        return Tensor(shape, "int8", GRID, name) if self.executes == "integer" else Tensor(shape, name=name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.tensors[self.value].shape

    def layer(self, kind: str, weight: tuple[int, ...], output: tuple[int, ...], table: str, **options: Any) -> None:
        """A convolution or linear layer; channels lie last in a depthwise weight, first in the others."""
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        channels = weight[axis]
        values = np.random.default_rng(0).integers(-127, 128, weight)
        if self.executes == "integer":
            stored = self.file.constant(values.astype(np.int8), "weight", Grid((0.01,) * channels, 0, axis))
            bias = self.file.constant(np.zeros(channels, np.int32), grid=Grid((0.0005,) * channels))
        else:
            stored, bias = self.file.constant(values.astype(np.float32) / 127, "weight"), self.file.constant(np.zeros(channels, np.float32))
        self.value = self.file.operator(kind, [self.value, stored, bias], self._tensor(output), table, **options)

    def convolution(self, channels: int, kernel: int) -> None:
        n, h, w, c = self.shape
        self.layer("CONV_2D", (channels, kernel, kernel, c), (n, h, w, channels), "Conv2DOptions", strideH=1, strideW=1, padding=0)

    def depthwise(self) -> None:
        options = {"strideH": 1, "strideW": 1, "padding": 0, "depthMultiplier": 1}
        self.layer("DEPTHWISE_CONV_2D", (1, 3, 3, self.shape[3]), self.shape, "DepthwiseConv2DOptions", **options)

    def linear(self, outputs: int) -> None:
        self.layer("FULLY_CONNECTED", (outputs, self.shape[-1]), (1, outputs), "FullyConnectedOptions")

    def add(self) -> None:
        self.value = self.file.operator("ADD", [self.value, self.value], self._tensor(self.shape), "AddOptions")

    def mean(self) -> None:
        axes = self.file.constant(np.array([1, 2], np.int32))
        self.value = self.file.operator("MEAN", [self.value, axes], self._tensor((1, self.shape[3])), "ReducerOptions")

    def done(self, operation: str) -> Benchmark:
        self.file.outputs = [self.value]
        return Benchmark(operation, self.executes, self.file.pack())


def benchmarks(executes: Executes) -> Iterator[Benchmark]:
    """Files of one operation, several sizes of each."""
    for side, given, made, kernel in CONVOLUTIONS:
        build = Builder(executes, (1, side, side, given))
        build.convolution(made, kernel)
        yield build.done("CONV_2D")
    for side, channels in DEPTHWISE:
        build = Builder(executes, (1, side, side, channels))
        build.depthwise()
        yield build.done("DEPTHWISE_CONV_2D")
    for side, channels in DEPTHWISE:
        build = Builder(executes, (1, side, side, channels))
        build.add()
        yield build.done("ADD")
    for given, made in LINEAR:
        build = Builder(executes, (1, given))
        build.linear(made)
        yield build.done("FULLY_CONNECTED")


def whole(executes: Executes) -> Benchmark:
    """A separable network, which the rates are checked on."""
    build = Builder(executes, (1, 20, 20, 24))
    for _ in range(2):
        build.depthwise()
        build.convolution(24, 1)
    build.add()
    build.mean()
    build.linear(10)
    return build.done("")


def ask(command: str, payload: bytes) -> float:
    """Milliseconds that the command prints last, after reading the file from its standard input.

    Raises:
        UsageError: it fails, or its last line holds no number.
    """
    try:
        done = subprocess.run(shlex.split(command), input=payload, capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"`{command}` could not be run: {error}.", hint="--run takes a command that reads a .tflite file and prints milliseconds.") from error
    said = (done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1]
    number = re.search(r"\d+(\.\d+)?([eE][-+]?\d+)?", said)
    if done.returncode != 0 or number is None:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise UsageError(
            f"`{command}` gave no time (exit {done.returncode}, last words: {said or last}).",
            hint="Its last line of standard output must be the milliseconds of one call.",
        )
    return float(number[0])


def fit(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """``(call_us, nanoseconds)`` of ``(work, milliseconds)`` points: non-negative least squares of the relative error.

    Example:
        >>> [round(v, 6) for v in fit([(1000, 0.012), (2000, 0.022), (5000, 0.052)])]
        [2.0, 10.0]
    """
    work, times = (np.array(column, np.float64) for column in zip(*points, strict=True))
    columns = np.stack([np.full_like(work, 1e-3), work * 1e-6], 1) / times[:, None]
    solution, _ = optimize.nnls(columns, np.ones(len(times)))
    return float(solution[0]), float(solution[1])


def calibrate(run: Callable[[bytes], float], source: str) -> LatencyTable:
    """Time every benchmark, fit the rates, and check them on a whole network.

    ``run`` gives the milliseconds of a file on the device. An operation's own call is separated from its work; the
    interpreter's call is in each of them, so a model of many small operations is estimated too high.
    """
    rates = []
    kinds: tuple[Executes, ...] = ("integer", "float")
    for executes in kinds:
        timed = [(b.operation, Reading.of(b.payload).work(0), run(b.payload)) for b in benchmarks(executes)]
        for operation, group in itertools.groupby(timed, lambda t: t[0]):
            call, each = fit([(work, ms) for _, work, ms in group])
            rates.append(Rate(operation=operation, executes=executes, call_us=call, nanoseconds=each))
    table = LatencyTable(source=source, rates=tuple(rates))
    check = whole("integer")
    estimated = sum(milliseconds(table, o) for o in Reading.of(check.payload).operations({}, lambda _: ""))
    return table.model_copy(update={"check_estimated_ms": estimated, "check_measured_ms": run(check.payload)})
