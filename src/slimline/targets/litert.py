"""LiteRT (TensorFlow Lite) on the CPU: .tflite files with integer operators, run through XNNPACK."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from slimline.core.contracts import Artifact, Operation, Port, Quantized
from slimline.core.formats import Affine, Float, Format
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.core.trial import Latency
from slimline.errors import LoweringError, TargetNotInstalled
from slimline.targets._feed import feed, repeat
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program
    from slimline.targets._litert_runner import Runner

LAYERS: tuple[Op, ...] = ("conv1d", "conv2d", "linear")
PROFILE_SECONDS = 0.03  # for each operator with a weight


class LiteRT:
    """LiteRT's interpreter with its default delegate, XNNPACK.

    The file is written from the exported graph by Slimline itself: channels last, int8 weights per channel, int8 values, int32
    biases. Weights of 4 and 8 bits that execute in float are decoded by an operator of the file; dynamic ones by the kernel.
    """

    name: ClassVar[str] = "litert"
    suffix: ClassVar[str] = ".tflite"
    beside: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "pip install 'slimline[litert]'"
    runner: ClassVar[Path] = Path(__file__).with_name("_litert_runner.py")
    integer_throughout: ClassVar[bool] = True  # an integer layer gives integers, the last one too

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec("ai_edge_litert") is not None

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("ai-edge-litert")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("LiteRT is not installed.", hint=f"Install it with: {cls.install}")

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        if isinstance(format, Float):
            return op in (*LAYERS, "embedding")
        if not isinstance(format, Affine) or format.granularity == "per_group" or op not in LAYERS:
            return False
        if execute == "integer":
            return format.bits == 8
        if execute == "dynamic":
            return op == "linear" and format.bits == 8 and format.granularity == "per_channel"
        return format.bits in (4, 8)

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets._tflite_lowering import Lowering

        return self.opened(Artifact(self.name, self.suffix, Lowering(program, example, integer_ports=False).run().pack(), (), ()))

    def opened(self, artifact: Artifact) -> Artifact:
        """The artefact with the names of its inputs and outputs.

        Raises:
            LoweringError: LiteRT refuses the file.
        """
        runner = self._runner(artifact)
        return replace(artifact, inputs=tuple(d["name"] for d in runner.inputs), outputs=tuple(d["name"] for d in runner.outputs))

    def _runner(self, artifact: Artifact, threads: int = 1) -> Runner:
        from slimline.targets._litert_runner import Runner
        from slimline.targets._tflite_reading import Reading

        self.require()
        Reading.of(artifact.payload)
        try:
            return Runner(artifact.payload, threads)
        except (RuntimeError, ValueError) as error:
            raise LoweringError(f"LiteRT refuses the model: {(str(error).splitlines() or [''])[0][:300]}") from error

    def _run(self, runner: Runner, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        try:
            return runner(inputs)
        except (RuntimeError, ValueError) as error:
            raise LoweringError(f"LiteRT stopped: {(str(error).splitlines() or [''])[0][:300]}") from error

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        from slimline.targets._tflite_reading import Reading

        return Reading.of(artifact.payload).ports()

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        import torch

        runner = self._runner(artifact, threads)
        parts = [[np.array(o) for o in self._run(runner, feed(artifact, b))] for b in inputs.batches(batch)]
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1) -> tuple[Operation, ...]:
        """The file's operators, and which of them the delegate took. LiteRT's Python package has no profiler: see ``layer_times``."""
        from slimline.targets._tflite_reading import Reading, layer_times

        reading = Reading.of(artifact.payload)
        delegated = self._delegated(artifact, example)

        def latency(payloads: list[bytes]) -> tuple[Latency, ...]:
            return self.latency([replace(artifact, payload=p) for p in payloads], example, threads=threads, seconds=PROFILE_SECONDS)

        return reading.operations(layer_times(reading, latency), lambda place: "XNNPACK" if place in delegated else "LiteRT")

    def _delegated(self, artifact: Artifact, example: Samples) -> frozenset[int]:
        """Places of the operators that a delegate runs: those between its inputs and its outputs."""
        runner = self._runner(artifact)
        self._run(runner, feed(artifact, example[:1]))
        details = runner.interpreter._get_ops_details()
        own = [o for o in details if o["op_name"] != "DELEGATE"]
        makers = {int(t): o for o in own for t in o["outputs"]}
        found: set[int] = set()
        for delegate in (o for o in details if o["op_name"] == "DELEGATE"):
            given, pending = set(map(int, delegate["inputs"])), [int(t) for t in delegate["outputs"]]
            while pending:
                tensor = pending.pop()
                maker = makers.get(tensor)
                if maker is not None and maker["index"] not in found:
                    found.add(maker["index"])
                    pending += [int(t) for t in maker["inputs"] if int(t) not in given]
        return frozenset(found)

    def untimed(self, artifact: Artifact) -> tuple[Operation, ...]:
        """The file's operators as they stand in it, for estimates: nothing runs."""
        from slimline.targets._tflite_reading import Reading

        return Reading.of(artifact.payload).operations({}, lambda place: "LiteRT")

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        calls = []
        samples = repeat(example, batch)
        for artifact in artifacts:
            runner = self._runner(artifact, threads)
            self._run(runner, feed(artifact, samples))  # the inputs stay set
            calls.append(runner.interpreter.invoke)
        return interleaved(calls, seconds=seconds, threads=threads, batch=batch)

    def memory(self, artifact: Artifact, example: Samples) -> int:
        return sum(self.memory_parts(artifact, example))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """Bytes of the constants, and of the planned values at batch 1. What XNNPACK packs for itself is in ``rss_bytes`` only."""
        from slimline.targets._tflite_reading import Reading, peak

        reading = Reading.of(artifact.payload)
        return reading.constant_bytes, peak(reading.lives, 64)

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """ai-edge-quantizer's static int8; nothing where it is not installed."""
        if importlib.util.find_spec("ai_edge_quantizer") is not None:
            from slimline.targets import _litert_plain

            try:
                yield Quantized(_litert_plain.LABEL, self.opened(replace(artifact, payload=_litert_plain.quantized(artifact, calibration))))
            except Exception as error:  # noqa: BLE001 - the quantizer raises anything; it becomes this setting's record
                yield Quantized(_litert_plain.LABEL, None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}")
