"""What targets and tasks promise each other, and what passes between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from slimline.core.formats import Format
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.core.whole import write_whole
from slimline.errors import UsageError

if TYPE_CHECKING:
    import torch

    from slimline.core.trial import Latency


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
    ``backend``: what runs it (``XNNPACK``, ``portable``, ``CPU``). ``bytes``: of its constants as the runtime holds them, ``None`` where it does not tell.
    ``work``: multiply-adds for one sample where it has them, else values written; ``None`` where the file does not tell.
    """

    name: str
    type: str
    executes: str
    weight: str = ""
    milliseconds: float | None = None
    backend: str = ""
    bytes: int | None = None
    work: int | None = None


@dataclass(frozen=True)
class Port:
    """An input as the artefact takes it: ``dtype`` in PyTorch's words (``float32``), ``None`` for a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Artifact:
    """A lowered model. ``payload`` is the file's content, bit for bit; ``beside`` what the runtime needs next to it, by suffix (``.bin``)."""

    target: str
    suffix: str
    payload: bytes = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def size_bytes(self) -> int:
        """Of all its files."""
        return len(self.payload) + sum(map(len, self.beside.values()))

    @property
    def content(self) -> bytes:
        """All its files, one after the other: what a download carries."""
        return b"".join((self.payload, *self.beside.values()))

    def files(self, stem: str) -> dict[str, bytes]:
        """File name -> content, the main file first.

        Example:
            >>> list(Artifact("openvino", ".xml", b"<net/>", (), (), {".bin": b"01"}).files("model"))
            ['model.xml', 'model.bin']
        """
        return {f"{stem}{suffix}": content for suffix, content in {self.suffix: self.payload, **self.beside}.items()}

    def write(self, path: Path) -> None:
        """Write its files, ``path`` being the main one; each appears whole or not at all."""
        for name, content in reversed(self.files(path.stem).items()):
            write_whole(path.with_name(name), content)

    @classmethod
    def read(cls, target: str, path: Path, beside: Sequence[str] = ()) -> Artifact:
        """What ``write`` wrote; its inputs and outputs are for ``Target.opened`` to find out.

        Raises:
            UsageError: one of the files is missing.
        """
        missing = [f.name for s in beside if not (f := path.with_suffix(s)).is_file()]
        if missing:
            raise UsageError(f"Beside {path} there is no {missing[0]}, which {target} needs.", hint="Keep an artefact's files together.")
        return cls(target, path.suffix, path.read_bytes(), (), (), {s: path.with_suffix(s).read_bytes() for s in beside})


@dataclass(frozen=True)
class Quantized:
    """What one setting of a runtime's own quantizer gave: an artefact, or why there is none."""

    label: str
    artifact: Artifact | None
    error: str = ""


@runtime_checkable
class Target(Protocol):
    """A runtime. Sizes, latency, memory and outputs are always those of the artefact in it."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    beside: ClassVar[tuple[str, ...]]
    """Suffixes of the further files that an artefact has."""
    install: ClassVar[str]
    """The command that installs the runtime."""
    runner: ClassVar[Path]
    """A script without Slimline in it, for the process that checks the file: ``load(file, threads)`` gives a function
    from the inputs, a dict of arrays by name, to the outputs, a sequence of arrays."""

    @classmethod
    def installed(cls) -> bool: ...
    @classmethod
    def version(cls) -> str: ...
    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        ...

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        """Whether a weight in this format runs at this operation in this manner (``integer``, ``dynamic``, ``float``)."""
        ...

    def lower(self, program: Any, example: Samples) -> Artifact:
        """Bytes of a frozen ``model.program.Program``; the batch size stays free.

        Raises:
            LoweringError: naming what stops it.
        """
        ...

    def opened(self, artifact: Artifact) -> Artifact:
        """The artefact of a file with the names of its inputs and outputs, after the runtime has taken it.

        Raises:
            LoweringError: the runtime refuses the file.
        """
        ...

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        """What its inputs must look like."""
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
        """Weights as loaded plus the peak of live activations, in bytes, for one sample."""
        ...

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """The float32 baseline through the runtime's own quantizer, one setting after the other; nothing where it has none."""
        ...


def varies(target: Target) -> bool:
    """Whether the target runs graphs whose shapes depend on values, as those that cut each batch's padding do: it says so by an attribute of this name. Others plan memory for fixed shapes."""
    return bool(getattr(target, "varies", False))


def saturates(target: Target) -> bool:
    """Whether the target's integer kernels saturate on this processor where weights use all of their 8 bits; ``Method.reduced`` and ``reduce_range`` are for these.

    A target whose kernels may do so has a function of this name, which tries; others need none.
    """
    found = getattr(target, "saturates", None)
    return found is not None and bool(found())
