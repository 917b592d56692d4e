"""PyTorch itself: the reference, and a file that any torch program opens with ``torch.export.load``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from slimline.core.contracts import Artifact, Operation, Port, Quantized
from slimline.core.formats import Affine, Float, Format
from slimline.core.heap import as_deployed
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.core.trial import Latency
from slimline.errors import LoweringError, TargetNotInstalled
from slimline.targets._feed import feed, repeat
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program

COMPILE = "SLIMLINE_TORCH_COMPILE"


class Torch:
    """An exported program, run by PyTorch on the CPU.

    Weights are stored in 8, 4 or 2 bits (packed) and decoded on every call, so they cost bytes and time; nothing
    runs in integers. Latency is the exported module's own, or with ``SLIMLINE_TORCH_COMPILE=1`` that of ``torch.compile``.
    """

    name: ClassVar[str] = "torch"
    suffix: ClassVar[str] = ".pt2"
    beside: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "pip install torch"
    runner: ClassVar[Path] = Path(__file__).with_name("_torch_runner.py")
    varies: ClassVar[bool] = True

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec("torch") is not None

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("torch")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("PyTorch is not installed.", hint=f"Install it with: {cls.install}")

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        if execute != "float" or isinstance(format, Float):
            return execute == "float"
        if not isinstance(format, Affine) or (format.granularity == "per_tensor" and format.bits < 8):
            return False
        return op == "linear" or format.granularity != "per_group"

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets import _torch_lowering

        return self.opened(Artifact(self.name, self.suffix, _torch_lowering.lower(program, example), (), ()))

    def opened(self, artifact: Artifact) -> Artifact:
        from slimline.targets import _torch_runner

        program, _ = self._load(artifact)
        positional, keywords = _torch_runner.names(program)
        count = len(program.graph_signature.user_outputs)
        return replace(artifact, inputs=(*positional, *keywords), outputs=tuple("output" + (f"_{i}" if i else "") for i in range(count)))

    def _load(self, artifact: Artifact, *, compiled: bool = False) -> tuple[torch.export.ExportedProgram, Any]:
        from slimline.model.trace import quiet
        from slimline.targets import _torch_runner

        try:
            with quiet():
                return _torch_runner.opened(io.BytesIO(artifact.payload), compiled=compiled)
        except Exception as error:  # the loader raises whatever its parts raise; all mean that it refuses the file
            raise LoweringError(f"PyTorch refuses the program: {(str(error).splitlines() or [''])[0][:300]}") from error

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        program, _ = self._load(artifact)
        values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
        found = []
        for name, given in zip(self.opened(artifact).inputs, program.graph_signature.user_inputs, strict=True):
            value = values[str(given)]
            found.append(Port(name, str(value.dtype).removeprefix("torch."), tuple(d if isinstance(d, int) else None for d in value.shape)))
        return tuple(found)

    def _call(self, artifact: Artifact, *, compiled: bool = False) -> Any:
        """A function from samples to the flat outputs."""
        import torch

        from slimline.model.traced import tensors_of
        from slimline.targets import _torch_runner

        program, module = self._load(artifact, compiled=compiled)
        positional, keywords = _torch_runner.names(program)
        whole = artifact if artifact.inputs else self.opened(artifact)

        def call(samples: Samples) -> tuple[torch.Tensor, ...]:
            given = {n: torch.from_numpy(a) for n, a in feed(whole, samples).items()}
            with torch.inference_mode():
                return tuple(tensors_of(module(*(given[n] for n in positional), **{n: given[n] for n in keywords})))

        return call

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        import torch

        call = self._call(artifact)
        with _threads(threads):
            parts = [call(b) for b in inputs.batches(batch)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1, runs: int = 20) -> tuple[Operation, ...]:
        """The graph as it is; times are medians of running it node by node at batch 1."""
        from slimline.targets import _torch_graph

        _, module = self._load(artifact)
        with _threads(threads):
            return _torch_graph.operations(module, self._ordered(artifact, example[:1]), runs)

    def _ordered(self, artifact: Artifact, samples: Samples) -> list[torch.Tensor]:
        import torch

        given = feed(artifact, samples)
        return [torch.from_numpy(given[n]) for n in artifact.inputs]

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        compiled = os.environ.get(COMPILE, "") not in ("", "0")
        few = repeat(example, batch)
        calls = [self._call(a, compiled=compiled) for a in artifacts]
        with _threads(threads), as_deployed():
            return interleaved([lambda c=c: c(few) for c in calls], seconds=seconds, threads=threads, batch=batch)  # type: ignore[misc]  # mypy cannot type a default argument of a lambda

    def memory(self, artifact: Artifact, example: Samples) -> int:
        return sum(self.memory_parts(artifact, example))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """Bytes of the weights, and the peak of live values."""
        from slimline.targets import _torch_graph

        program, module = self._load(artifact)
        weights = sum(int(t.nbytes) for t in (*program.state_dict.values(), *program.constants.values()) if hasattr(t, "nbytes"))
        return weights, _torch_graph.peak_activations(module, self._ordered(artifact, example[:1]))

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """None: the x86 quantizer of torch 2.13 gives graphs that its own compiler refuses."""
        return iter(())


class _threads:
    """PyTorch's threads within operations, as they were afterwards."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.before)
