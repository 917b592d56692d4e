"""What targets, strategies, executors and tasks promise each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from slimline.core.formats import Format
from slimline.core.samples import Samples
from slimline.core.site import Op

if TYPE_CHECKING:
    import torch

    from slimline.core.trial import Latency

T = TypeVar("T")
R = TypeVar("R")


class Task(Protocol):
    """The user's data and what counts as good. ``sources/task_file.py`` makes one from a file."""

    def example(self) -> Samples:
        """One batch of inputs."""
        ...

    def data(self, split: str) -> Samples | None:
        """``train``, ``search`` or ``holdout``; ``None`` where there is no such split."""
        ...

    def metric(self, outputs: Any, targets: Any) -> float | torch.Tensor:
        """Higher is better: a float, or per-sample scores ``[N]`` whose mean is the quality."""
        ...

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        """A scalar to minimise, or ``None``: distillation only."""
        ...


@dataclass(frozen=True)
class Operation:
    """One operation of the artefact after the runtime has optimised it.

    ``weight``: the parameter that it uses, by its name in the program, or ``""``.
    ``executes``: ``integer`` or ``float``. ``milliseconds``: by the runtime's own profile, or ``None``.
    """

    name: str
    type: str
    executes: str
    weight: str = ""
    milliseconds: float | None = None


@dataclass(frozen=True)
class Artifact:
    """A lowered model. ``payload`` is the file's content, bit for bit."""

    target: str
    suffix: str
    payload: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.payload)

    def write(self, path: Path) -> None:
        """Write the file; it appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(self.payload)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@runtime_checkable
class Target(Protocol):
    """A runtime. Sizes, latency, memory and outputs are always those of the artefact in it."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    install: ClassVar[str]
    """The command that installs the runtime."""

    @classmethod
    def installed(cls) -> bool: ...
    @classmethod
    def version(cls) -> str: ...
    def executes(self, format: Format, op: Op, execute: str) -> bool:
        """Whether a weight in this format runs at this operation in this manner (``integer``, ``dynamic``, ``float``)."""
        ...

    def lower(self, program: Any, example: Samples) -> Artifact:
        """Bytes of a frozen ``model.program.Program``; the batch size stays free.

        Raises:
            LoweringError: naming what stops it.
        """
        ...

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> Any:
        """Outputs for all samples: the pytree that the model gives, as a flat tuple of tensors."""
        ...

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1) -> tuple[Operation, ...]:
        """The optimised graph read back and profiled."""
        ...

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        """Each artefact's latency, all of them interleaved in one process after a warm-up."""
        ...

    def memory(self, artifact: Artifact, example: Samples) -> int:
        """Weights as loaded plus the peak of live activations, in bytes, at the example's batch."""
        ...


class Executor(Protocol):
    """Runs independent work."""

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]: ...
