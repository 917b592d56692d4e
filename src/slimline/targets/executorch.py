"""ExecuTorch on the CPU: .pte files whose layers run in XNNPACK, for phones and other devices without Python."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
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
from slimline.errors import LoweringError, TargetNotInstalled, UsageError
from slimline.targets._feed import feed, repeat
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program
    from slimline.targets._executorch_runner import Runner

CONVOLUTIONS: tuple[Op, ...] = ("conv1d", "conv2d")
CONVOLUTIONS_3D: tuple[Op, ...] = ("conv3d", "conv_transpose3d")  # which neither XNNPACK nor another kernel takes
RUNS = 20  # of the profile
CHATTER = ("[cpuinfo", "[threadpool")  # where its complaints begin otherwise


class ExecuTorch:
    """ExecuTorch's runtime with the XNNPACK delegate, through its Python binding.

    Static int8 runs on signed activations and signed per-channel weights, with the plan's own scales.
    """

    name: ClassVar[str] = "executorch"
    suffix: ClassVar[str] = ".pte"
    beside: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "pip install 'slimline[executorch]'"
    runner: ClassVar[Path] = Path(__file__).with_name("_executorch_runner.py")
    integer_throughout: ClassVar[bool] = True  # a layer whose output is on no grid would run in float

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec("executorch") is not None

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("executorch")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("ExecuTorch is not installed.", hint=f"Install it with: {cls.install}")

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        if isinstance(format, Float):
            return op not in CONVOLUTIONS_3D
        if not isinstance(format, Affine):
            return False
        group, channel = format.granularity == "per_group", format.granularity == "per_channel"
        if execute == "integer":
            return op in (*CONVOLUTIONS, "linear") and format.bits == 8 and not group
        if op == "embedding":
            return execute == "float" and channel
        if op != "linear" or format.bits == 2 or (group and (format.bits != 4 or format.group % 32)):
            return False
        return channel if execute == "dynamic" else channel or group

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets import _executorch_lowering

        return self.opened(Artifact(self.name, self.suffix, _executorch_lowering.lower(program, example), (), ()))

    def opened(self, artifact: Artifact) -> Artifact:
        """The artefact with the names of its inputs and outputs.

        Raises:
            LoweringError: ExecuTorch refuses the file.
        """
        runner = self._runner(artifact)
        outputs = runner.about.num_outputs()
        return replace(artifact, inputs=runner.inputs, outputs=tuple("output" + (f"_{i}" if i else "") for i in range(outputs)))

    def _runner(self, artifact: Artifact, threads: int = 1, *, profile: bool = False) -> Runner:
        from slimline.targets._executorch_runner import Runner

        with _heard("refuses the model"):
            return Runner(artifact.payload, threads, profile=profile)

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        from slimline.targets._executorch_file import DTYPES, File

        file = File.of(artifact.payload)
        found = []
        for name, value in zip(self.opened(artifact).inputs, file.plan.inputs, strict=True):
            tensor = file.tensor(value)
            free = int(tensor.shape_dynamism) != 0
            found.append(Port(name, DTYPES.get(int(tensor.scalar_type), "float32"), (None if free else tensor.sizes[0], *tensor.sizes[1:])))
        return tuple(found)

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        import torch

        runner = self._runner(artifact, threads)
        parts = [self._run(runner, feed(artifact, b)) for b in inputs.batches(batch)]
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))

    def _run(self, runner: Runner, given: Mapping[str, np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
        with _heard("stopped"):
            return runner(given)

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1) -> tuple[Operation, ...]:
        """What XNNPACK and the other kernels ran, with their own profile at batch 1."""
        from slimline.targets import _executorch_profile
        from slimline.targets._executorch_file import File

        runner = self._runner(artifact, threads, profile=True)
        given = feed(artifact, example[:1])
        for _ in range(RUNS):
            self._run(runner, given)
        return _executorch_profile.operations(File.of(artifact.payload), _executorch_profile.profile(runner.module))

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        calls = []
        samples = repeat(example, batch)
        for artifact in artifacts:
            runner = self._runner(artifact, threads)
            if batch > runner.most:
                raise UsageError(f"This .pte file takes up to {runner.most} samples at once, not {batch}.", hint=f"Use --batch {runner.most} or less.")
            tensors = runner.tensors(feed(artifact, samples))
            calls.append(lambda r=runner, t=tensors: r.call(t))
        return interleaved(calls, seconds=seconds, threads=threads, batch=batch)

    def memory(self, artifact: Artifact, example: Samples) -> int:
        return sum(self.memory_parts(artifact, example))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """Bytes of the constants; what the file plans for its outputs and between delegates, with the inputs and the delegates' values at batch 1."""
        from slimline.targets import _executorch_profile
        from slimline.targets._executorch_file import File

        return _executorch_profile.memory_parts(File.of(artifact.payload))

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """Nothing: ExecuTorch's quantizer works on a PyTorch program, which a .pte file no longer is."""
        return iter(())


@contextlib.contextmanager
def _heard(what: str) -> Iterator[None]:
    """Silence, unless the runtime fails: then its first complaint, which says more than its exception.

    Raises:
        LoweringError: it failed.
    """
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            yield
    except (RuntimeError, ValueError) as error:
        said = next((line for line in heard.getvalue().splitlines() if not line.startswith(CHATTER)), str(error))
        raise LoweringError(f"ExecuTorch {what}: {said[:300]}") from error
