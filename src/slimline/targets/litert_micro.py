"""TensorFlow Lite Micro: .tflite files for microcontrollers, run in its interpreter on this machine."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
from slimline.targets._feed import feed
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program
    from slimline.targets._litert_micro_runner import Runner

LAYERS: tuple[Op, ...] = ("conv1d", "conv2d", "linear")
MODULES = ("ai_edge_litert", "tflite_micro")
ROW = 12  # bytes in a line of the header


class LiteRTMicro:
    """The micro interpreter with its reference kernels. Inputs and outputs of the file are int8 where the plan makes them so.

    The file leaves out what this interpreter does not read, so other runtimes may refuse it; ``litert`` writes one for them.

    ``memory`` is the arena: weights stay in flash, which is what ``size_bytes`` counts.
    """

    name: ClassVar[str] = "litert-micro"
    suffix: ClassVar[str] = ".tflite"
    beside: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "pip install 'slimline[litert-micro]'"
    runner: ClassVar[Path] = Path(__file__).with_name("_litert_micro_runner.py")
    integer_throughout: ClassVar[bool] = True
    integer_only: ClassVar[bool] = True  # no layer is left in float where it can be an integer one: boards are slow at it
    weights_in_flash: ClassVar[bool] = True

    @classmethod
    def installed(cls) -> bool:
        return all(importlib.util.find_spec(m) is not None for m in MODULES)

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("tflite-micro")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("LiteRT and the TensorFlow Lite Micro interpreter are not both installed.", hint=f"Install them with: {cls.install}")

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        """Integers, or nothing done: hybrid kernels are not there, and decoding a weight would put it into RAM."""
        if isinstance(format, Float):
            return op in LAYERS
        return execute == "integer" and isinstance(format, Affine) and format.granularity != "per_group" and format.bits == 8 and op in LAYERS

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets._micro_arena import KERNEL
        from slimline.targets._tflite_lowering import Lowering
        from slimline.targets._tflite_reading import Reading

        payload = Lowering(program, example, integer_ports=True).run().pack(compact=True)
        missing = sorted(set(Reading.of(payload).kinds) - set(KERNEL))
        if missing:
            raise LoweringError(f"TensorFlow Lite Micro has no {', '.join(missing)}.", hint="Replace the operation in the model, or use --target litert.")
        return self.opened(Artifact(self.name, self.suffix, payload, (), ()))

    def opened(self, artifact: Artifact) -> Artifact:
        """The artefact with the names of its inputs and outputs.

        Raises:
            LoweringError: the micro interpreter refuses the file.
        """
        runner = self._runner(artifact)
        return replace(artifact, inputs=tuple(d["name"] for d in runner.inputs), outputs=tuple(d["name"] for d in runner.outputs))

    def _runner(self, artifact: Artifact) -> Runner:
        from slimline.targets._litert_micro_runner import Runner
        from slimline.targets._tflite_reading import Reading

        self.require()
        if count := Reading.of(artifact.payload).outside:
            raise LoweringError(
                f"{count} of the file's constants stand out of line, which the micro interpreter reads as garbage without a word.",
                hint="Write the file anew with its constants in line.",
            )
        try:
            return Runner(artifact.payload)
        except (RuntimeError, ValueError) as error:
            raise LoweringError(f"TensorFlow Lite Micro refuses the model: {(str(error).splitlines() or [''])[0][:300]}") from error

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        from slimline.targets._tflite_reading import Reading

        return Reading.of(artifact.payload).ports()

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        """``threads`` is not heard: the interpreter has one."""
        import torch

        runner = self._runner(artifact)
        parts = [runner(feed(artifact, b)) for b in inputs.batches(batch)]
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1) -> tuple[Operation, ...]:
        """The file's operators; the interpreter changes none. A layer's time is found as for ``litert``, with reference kernels."""
        from slimline.targets._tflite_reading import Reading, layer_times

        reading = Reading.of(artifact.payload)
        times = layer_times(reading, lambda payloads: self.latency([replace(artifact, payload=p) for p in payloads], example, seconds=0.03))
        return reading.operations(times, lambda place: "reference")

    def untimed(self, artifact: Artifact) -> tuple[Operation, ...]:
        """The file's operators as they stand in it, for estimates: nothing runs."""
        from slimline.targets._tflite_reading import Reading

        return Reading.of(artifact.payload).operations({}, lambda place: "reference")

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        """Of reference kernels on this machine; it says how models compare, not how fast a board is.

        Raises:
            LoweringError: a batch other than one.
        """
        calls: list[Any] = []
        for artifact in artifacts:
            runner = self._runner(artifact)
            runner(feed(artifact, example[:1]))  # the inputs stay set
            calls.append(functools.partial(_repeat, runner.interpreter.invoke, batch))
        return interleaved(calls, seconds=seconds, threads=1, batch=batch)

    def memory(self, artifact: Artifact, example: Samples) -> int:
        return sum(self.memory_parts(artifact, example))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """No bytes of weights, which stay in flash, and the arena, computed by the planner that is checked against the interpreter's own."""
        from slimline.targets._micro_arena import arena
        from slimline.targets._tflite_reading import Reading

        return 0, arena(Reading.of(artifact.payload)).nbytes

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """Nothing: the micro interpreter has no quantizer."""
        return iter(())

    def measured_arena(self, artifact: Artifact) -> tuple[int, int]:
        """``(head, tail)`` bytes by the interpreter's recording allocator, in a process of its own (it prints them)."""
        done = subprocess.run([sys.executable, "-I", str(self.runner)], input=artifact.payload, capture_output=True, check=False)
        said = done.stderr.decode(errors="replace")
        found = dict(re.findall(r"Arena allocation (head|tail) (\d+) bytes", said))
        if len(found) != 2:
            raise LoweringError(f"The micro interpreter did not say how much it allocates: {(said.strip().splitlines() or ['nothing'])[-1][:300]}")
        return int(found["head"]), int(found["tail"])

    def products(self, artifact: Artifact, stem: str) -> dict[str, bytes]:
        """What a firmware build takes: the file as a C array with the arena's size."""
        return {f"{stem}.h": header(artifact, sum(self.measured_arena(artifact)), stem).encode()}


def _repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def header(artifact: Artifact, arena_bytes: int, stem: str) -> str:
    """A C and C++ header: the model, aligned as the interpreter wants it, its length, and the arena's size.

    Example:
        >>> print(header(Artifact("litert-micro", ".tflite", b"TFL3", ("x",), ("y",)), 2048, "model").splitlines()[-3])
        static const unsigned int model_len = 4;
    """
    name = re.sub(r"\W", "_", stem)
    body = artifact.payload
    rows = (", ".join(f"0x{b:02x}" for b in body[i : i + ROW]) for i in range(0, len(body), ROW))
    lines = [
        "/* Made by Slimline. The arena is for TensorFlow Lite Micro's reference kernels on 64 bits, and enough on 32;",
        "   kernels of a vendor (CMSIS-NN, ESP-NN) may ask for scratch beyond it: AllocateTensors says so. */",
        "#pragma once",
        f"enum {{ {name}_arena_bytes = {arena_bytes} }};",
        "#if defined(__GNUC__)",
        "__attribute__((aligned(16)))",
        "#endif",
        f"static const unsigned char {name}_tflite[] = {{",
        *(f"    {row}," for row in rows),
        "};",
        f"static const unsigned int {name}_len = {len(body)};",
        f"/* inputs: {', '.join(artifact.inputs)}; outputs: {', '.join(artifact.outputs)};",
        "   images and sequences are channels last. */",
        "",
    ]
    return "\n".join(lines)
