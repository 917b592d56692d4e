"""What every target promises, as tests that anyone can run over theirs: a claim is something tested."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import nn

from slimline.core.contracts import Artifact, Target, saturates, varies
from slimline.core.edits import Encode, Numerics, QuantizeValue
from slimline.core.formats import Affine, Float, Format
from slimline.core.registry import registered
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.errors import LoweringError
from slimline.model.entry import Trim
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize

BITS: tuple[Literal[8], Literal[4], Literal[2]] = (8, 4, 2)
FORMATS: tuple[Format, ...] = (
    *(Affine(bits=bits) for bits in BITS),
    *(Affine(bits=bits, granularity="per_tensor") for bits in BITS),
    *(Affine(bits=bits, granularity="per_group", group=32) for bits in BITS),
)
Input = torch.Tensor | None
EXECUTES = ("float", "integer", "dynamic")
OPS: tuple[Op, ...] = tuple(op for op in get_args(Op) if op not in ("channels", "block", "input", "model"))
SAMPLES = 6


@dataclass(frozen=True)
class Claim:
    """A target that says it executes weights in this format in this manner, at these operations."""

    target: type[Target]
    format: Format
    execute: str
    ops: tuple[Op, ...]

    @property
    def label(self) -> str:
        return f"{self.target.name}-{self.format.name.replace('/', '-')}-{self.execute}"


def claims(target: type[Target]) -> tuple[Claim, ...]:
    """Everything that a target says it executes."""
    made = target()
    found = [
        Claim(target, format, execute, tuple(op for op in OPS if made.executes(format, op, execute)))
        for format, execute in [(Float(), "float"), *((f, e) for f in FORMATS for e in EXECUTES)]
    ]
    return tuple(c for c in found if c.ops)


class Branches(nn.Module):
    """One layer of each operation beside each other, about 16,000 weights each (the linear one 65,000); every branch has an output of its own."""

    def __init__(self, ops: Sequence[Op]) -> None:
        super().__init__()
        make: dict[Op, Callable[[], nn.Module]] = {
            "conv1d": lambda: nn.Conv1d(32, 128, 4),
            "conv2d": lambda: nn.Conv2d(32, 64, 3, padding=1),
            "conv3d": lambda: nn.Conv3d(16, 40, 3, padding=1),
            "conv_transpose1d": lambda: nn.ConvTranspose1d(32, 128, 4, stride=2),
            "conv_transpose2d": lambda: nn.ConvTranspose2d(32, 64, 3, stride=2),
            "conv_transpose3d": lambda: nn.ConvTranspose3d(16, 40, 3),
            "linear": lambda: nn.Linear(256, 256),
            "embedding": lambda: nn.Embedding(1024, 128),  # a table that weighs enough for the shrinking test to see it
            "lstm": lambda: nn.LSTM(64, 64, batch_first=True),
            "gru": lambda: nn.GRU(64, 64, batch_first=True),
        }
        self.layers = nn.ModuleDict({op: make[op]() for op in ops})

    def forward(
        self,
        conv1d: Input = None,
        conv2d: Input = None,
        conv3d: Input = None,
        conv_transpose1d: Input = None,
        conv_transpose2d: Input = None,
        conv_transpose3d: Input = None,
        linear: Input = None,
        embedding: Input = None,
        lstm: Input = None,
        gru: Input = None,
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(OPS, (conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, linear, embedding, lstm, gru), strict=True))
        outputs = []
        for op, layer in self.layers.items():
            x = given[op]  # type: ignore[index]  # a ModuleDict's keys are strings to mypy
            y = layer(x)[0] if op in ("lstm", "gru") else layer(x)
            outputs.append(torch.tanh(y if op in ("lstm", "gru", "embedding") else torch.relu(y)))
        return tuple(outputs)


class Words(nn.Module):
    """A mean over the words that a mask says are there; padding is cut first, so that shapes depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.trim = Trim(12, "end", padding=0, by=1)
        self.table, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ids, mask = self.trim(ids, mask)
        mean: torch.Tensor = (torch.relu(self.layer(self.table(ids))) * mask.unsqueeze(2).float()).sum(1) / mask.sum(1, keepdim=True).float()
        return mean


def inputs_of(ops: Sequence[Op], count: int) -> Samples:
    """One input for each branch."""
    make = torch.Generator().manual_seed(1)
    shapes: dict[Op, tuple[int, ...]] = {
        "conv1d": (32, 12), "conv2d": (32, 6, 6), "conv3d": (16, 3, 4, 4), "conv_transpose1d": (32, 8), "conv_transpose2d": (32, 4, 4),
        "conv_transpose3d": (16, 2, 3, 3), "linear": (256,), "lstm": (5, 64), "gru": (5, 64),
    }  # fmt: skip
    return Samples(
        (),
        {
            op: torch.randint(0, 1024, (count, 7), generator=make) if op == "embedding" else torch.randn(count, *shapes[op], generator=make).clamp(-3, 3)
            for op in ops
        },
    )


@functools.cache
def original(ops: tuple[Op, ...]) -> Program:
    """The float program of these branches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Program.export(Branches(ops).eval(), inputs_of(ops, 2))


def lowered(target: type[Target], ops: tuple[Op, ...], format: Format, execute: str) -> tuple[Program, Artifact]:
    """The stored program with all its weights in this format, and what the target makes of it; made once per process."""
    return _lowered(target, ops, cast(Hashable, format), execute)


@functools.cache
def _lowered(target: type[Target], ops: tuple[Op, ...], format: Format, execute: str) -> tuple[Program, Artifact]:
    program, samples = original(ops), inputs_of(ops, SAMPLES)
    edits: list[Numerics] = []
    for name, use in program.weights.items():
        if isinstance(format, Affine):
            reduced = execute != "float" and format.bits == 8 and saturates(target())
            fitting = format.model_copy(update={"axis": use.axis if format.granularity == "per_channel" else 0, "reduce_range": reduced})
            edits.append(Encode(name, fitting, fitting.encode(program.parameter(name)), execute))
        if execute == "integer":
            edits += [grid(program, value, samples) for value in (use.input, use.output)]
    stored = freeze(quantize(program, edits))
    return stored, target().lower(stored, samples[:2])


@torch.no_grad()
def grid(program: Program, value: str, samples: Samples) -> QuantizeValue:
    """A min-max grid of unsigned bytes with zero on it."""
    x = program.run(samples, keep=True).values[program.node(value).name]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max(high - low, 1e-6) / 255
    return QuantizeValue(value, 8, False, scale, round(-low / scale))


class TargetSuite:
    """Subclass it under pytest; it runs over every registered target, or over ``targets``. One that is not installed is skipped, with the command.

    ``tolerance``: the largest difference from the stored program's outputs in PyTorch, as a share of their range, by manner of
    execution; weights leave one bit free where the target's kernels saturate on this processor. Integer kernels requantize in integers where the reference divides in float, which may give the neighbouring step;
    dynamic ones, and block products, round the input to 8 bits, which the reference does not.
    ``saved``: the least share of the bytes that a format promises to save by which the file must be smaller.

    Example:
        >>> from slimline.targets.torch import Torch
        >>> claim = next(c for c in claims(Torch) if c.format.name == "int4")
        >>> TargetSuite().test_the_file_shrinks_as_the_format_says(claim)
    """

    targets: ClassVar[Sequence[type[Target]] | None] = None
    tolerance: ClassVar[dict[str, float]] = {"float": 1e-3, "per_group": 0.03, "integer": 0.03, "dynamic": 0.03}
    saved: ClassVar[float] = 0.95

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """One test for each claim, or for each target."""
        import pytest

        found = tuple(registered("targets").values()) if cls.targets is None else cls.targets
        missing = {t: pytest.mark.skip(reason=f"the target {t.name} is not installed ({t.install})") for t in found if not t.installed()}

        def marked(value: Any, target: type[Target], label: str) -> Any:
            return pytest.param(value, id=label, marks=[missing[target]] if target in missing else [])

        if "claim" in metafunc.fixturenames:
            metafunc.parametrize("claim", [marked(c, t, c.label) for t in found for c in claims(t)])
        if "target" in metafunc.fixturenames:
            metafunc.parametrize("target", [marked(t, t, t.name) for t in found])

    @classmethod
    def allowed(cls, claim: Claim) -> float:
        """The largest difference of outputs, as a share of their range."""
        grouped = isinstance(claim.format, Affine) and claim.format.granularity == "per_group" and claim.execute == "float"
        return cls.tolerance["per_group" if grouped else claim.execute]

    @torch.no_grad()
    def test_outputs_are_the_stored_programs(self, claim: Claim) -> None:
        stored, artifact = lowered(claim.target, claim.ops, claim.format, claim.execute)
        samples = inputs_of(claim.ops, SAMPLES)
        expected, got = stored.run(samples).outputs, claim.target().run(artifact, samples, batch=4)
        allowed = self.allowed(claim)
        assert len(got) == len(expected)
        for op, a, b in zip(claim.ops, got, expected, strict=True):
            assert a.shape == b.shape, op
            apart = float((a - b).abs().max() / (b.max() - b.min()))
            assert apart <= allowed, f"{claim.label} at {op}: outputs differ by {apart:.4f} of their range, allowed is {allowed}"

    def test_the_file_shrinks_as_the_format_says(self, claim: Claim) -> None:
        stored, artifact = lowered(claim.target, claim.ops, claim.format, claim.execute)
        if isinstance(claim.format, Float):
            return
        _, whole = lowered(claim.target, claim.ops, Float(), "float")
        promised = sum(4 * e.parts["values"].numel() - e.format.nbytes(e.parts) for e in stored.encoded.values())
        assert whole.size_bytes - artifact.size_bytes >= self.saved * promised, (
            f"{claim.label}: {whole.size_bytes:,} bytes became {artifact.size_bytes:,}, which is {whole.size_bytes - artifact.size_bytes:,} less; the format promises {promised:,}"
        )

    def test_integer_claims_run_in_integers(self, claim: Claim) -> None:
        """As the runtime's own optimised graph says."""
        if claim.execute == "float":
            return
        stored, artifact = lowered(claim.target, claim.ops, claim.format, claim.execute)
        operations = claim.target().operations(artifact, inputs_of(claim.ops, 2))
        executed = {o.weight: o.executes for o in operations if o.weight}
        assert {w: executed.get(w, "not found") for w in stored.encoded} == dict.fromkeys(stored.encoded, "integer")

    def test_it_says_what_it_is(self, target: type[Target]) -> None:
        assert isinstance(target(), Target)
        assert target.version() and target.suffix.startswith(".") and target.install.startswith("pip install")
        assert target.runner.is_file()
        target.require()

    def test_a_file_read_back_is_the_same_artefact(self, target: type[Target], tmp_path: Any) -> None:
        _, artifact = lowered(target, ("linear",), Float(), "float")
        file = tmp_path / f"model{target.suffix}"
        artifact.write(file)
        assert {f.name for f in tmp_path.iterdir()} == set(artifact.files("model"))
        assert sum(f.stat().st_size for f in tmp_path.iterdir()) == artifact.size_bytes
        again = target().opened(Artifact.read(target.name, file, target.beside))
        assert again == artifact

    def test_lowering_gives_the_same_bytes_twice(self, target: type[Target]) -> None:
        stored, artifact = lowered(target, ("linear",), Float(), "float")
        assert target().lower(stored, inputs_of(("linear",), 2)).content == artifact.content

    def test_ports_are_the_models_inputs(self, target: type[Target]) -> None:
        _, artifact = lowered(target, ("linear",), Float(), "float")
        (port,) = target().ports(artifact)
        assert port.name == artifact.inputs[0] and port.dtype == "float32"
        assert len(port.shape) == 2 and port.shape[1] == 256

    def test_a_fresh_process_gives_the_same_outputs(self, target: type[Target], tmp_path: Any) -> None:
        from slimline.measure.fresh import run_fresh

        _, artifact = lowered(target, ("linear",), Float(), "float")
        samples = inputs_of(("linear",), SAMPLES)
        file = tmp_path / f"model{target.suffix}"
        artifact.write(file)
        outputs, rss = run_fresh(target(), file, artifact.inputs, samples, threads=1, batch=4)
        (here,) = target().run(artifact, samples)
        torch.testing.assert_close(outputs[0], here, rtol=1e-5, atol=1e-6)
        assert rss > 10_000_000

    def test_weights_are_found_with_their_times(self, target: type[Target]) -> None:
        """Each float layer's time is its own in the profile: the cost model is fitted to it."""
        ops: tuple[Op, ...] = ("conv2d", "linear")
        stored, artifact = lowered(target, ops, Float(), "float")
        operations = target().operations(artifact, inputs_of(ops, 2))
        timed = {o.weight for o in operations if o.milliseconds is not None and o.milliseconds >= 0}
        assert set(stored.weights) <= timed
        assert all(o.executes in ("integer", "float") and o.type for o in operations)

    def test_latency_counts_every_artefact_alike(self, target: type[Target]) -> None:
        _, artifact = lowered(target, ("linear",), Float(), "float")
        first, second = target().latency([artifact, artifact], inputs_of(("linear",), 2), batch=3, seconds=0.05)
        assert first.runs >= 20 and second.runs >= 20 and 0 < first.median <= first.p95
        assert (first.batch, first.threads) == (3, 1)

    def test_memory_counts_weights_and_activations(self, target: type[Target]) -> None:
        _, artifact = lowered(target, ("linear",), Float(), "float")
        memory = target().memory(artifact, inputs_of(("linear",), 2))
        weights = 0 if getattr(target, "weights_in_flash", False) else 4 * 256 * 257
        assert weights < memory < weights + 4 * 256 * 257

    @torch.no_grad()
    def test_shapes_may_depend_on_values_where_it_says_so(self, target: type[Target]) -> None:
        """Texts of different lengths, alone and together; the memory of a longer one is more."""
        runtime = target()
        if not varies(runtime):
            return
        mask = (torch.arange(12) < torch.tensor([[3], [12], [1], [7]])).long()
        samples = Samples.of({"ids": torch.randint(1, 50, (4, 12), generator=torch.Generator().manual_seed(1)) * mask, "mask": mask})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Words().eval()
        artifact = runtime.lower(Program.export(model, samples[:2]), samples[:2])
        expected = torch.cat([model(**samples[i : i + 1].kwargs) for i in range(len(samples))])
        for batch in (1, 4):
            (got,) = runtime.run(artifact, samples, batch=batch)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert runtime.memory(artifact, samples[1:2]) > runtime.memory(artifact, samples[2:3])

    def test_bytes_that_are_no_model_are_a_typed_error(self, target: type[Target]) -> None:
        nonsense = Artifact(target.name, target.suffix, b"nonsense", ("input",), ("output",), dict.fromkeys(target.beside, b""))
        try:
            target().run(nonsense, inputs_of(("linear",), 2))
        except LoweringError:
            return
        raise AssertionError(f"{target.name} ran nonsense")
