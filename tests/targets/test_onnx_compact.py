"""Masked and shared weights in ONNX files: decoded once, exact, integers where the plan says so, and smaller."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn

from slimline.core.contracts import Artifact
from slimline.core.edits import Encode, Numerics, QuantizeValue
from slimline.core.formats import Affine, Codebook, Float, Format, Masked, Product
from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.targets._onnx_compact import DOMAIN
from slimline.targets.onnxruntime import OnnxRuntime

TARGET = OnnxRuntime()
INT8 = Affine(reduce_range=TARGET.saturates())  # what comes out exact on this processor
INTEGERS = (
    Masked(values=INT8, sparsity=0.75),
    Masked(values=Affine(bits=4), sparsity=0.75),
    Masked(values=Affine(bits=2), sparsity=0.9),
    Masked.pattern(2, 4, INT8),
    Masked(values=Affine(bits=4), sparsity=0.75, block=(1, 4)),
    Codebook(k=4, values=INT8),
    Codebook(k=8, values=INT8),
    Codebook(k=16, values=INT8),
    Codebook(k=200, values=Affine()),
    Product(k=16, d=4, values=INT8),
    Product(k=100, d=2, values=INT8),
    Masked(values=Codebook(k=8, values=INT8, zero=True), sparsity=0.75),
    Masked(values=Codebook(k=16, values=INT8, zero=True), sparsity=0.75),
)
FLOATS = (
    Codebook(k=16, values=INT8.model_copy(update={"granularity": "per_tensor"})),
    Masked(values=Float(), sparsity=0.75),
    Masked(values=Float(), sparsity=0.75, block=(1, 2)),
    Codebook(k=4),
    Codebook(k=5),
    Product(k=256, d=4),
    Codebook(k=16),
    Masked(values=Codebook(k=256, zero=True), sparsity=0.6),
)


def names(format: Format) -> str:
    return format.name


class Net(nn.Module):
    """Convolutions, a linear layer on three dimensions and one on two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.mix = nn.Linear(64, 52)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        x = torch.relu(self.mix(x.flatten(2)))
        out: torch.Tensor = self.head(x.mean(2))
        return out


def pictures(count: int = 6) -> Samples:
    return Samples.of(torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1)))


def program_of(make: Callable[[], nn.Module], samples: Samples) -> Program:
    torch.manual_seed(0)
    return Program.export(make().eval(), samples[:2])


def lowered(program: Program, format: Format, execute: str, samples: Samples) -> tuple[Program, Artifact]:
    values = program.run(samples, keep=True).values
    edits: list[Numerics] = []
    for name, use in program.weights.items():
        edits.append(Encode(name, format, format.encode(program.parameter(name)), execute))
        for value in (use.input, *([] if use.final else [use.output])) if execute == "integer" else ():
            low, high = (float(t) for t in torch.aminmax(values[program.node(value).name].detach()))
            scale = (max(high, 0.0) - min(low, 0.0)) / 255
            edits.append(QuantizeValue(value, 8, False, scale, round(-min(low, 0.0) / scale)))
    stored = freeze(quantize(program, edits))
    return stored, TARGET.lower(stored, samples)


def agrees(artifact: Artifact, stored: Program, samples: Samples, atol: float) -> None:
    (got,) = TARGET.run(artifact, samples)
    torch.testing.assert_close(got, stored(samples).detach(), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("format", INTEGERS, ids=names)
def test_integer_weights_run_in_integers_and_nothing_is_decoded_per_call(format: Format) -> None:
    samples = pictures()
    stored, artifact = lowered(program_of(Net, samples), format, "integer", samples)
    agrees(artifact, stored, samples, atol=0.03)  # a step of the output's grid
    operations = TARGET.operations(artifact, samples)
    assert {o.weight for o in operations if o.executes == "integer" and o.weight} == set(stored.encoded)
    assert not {o.type for o in operations} & {"Gather", "CumSum", "BitwiseAnd", "Cast", "ReduceSum"}


@pytest.mark.parametrize("format", [*FLOATS, *INTEGERS[:1], INTEGERS[6], INTEGERS[-1]], ids=names)
def test_float_execution_decodes_once(format: Format) -> None:
    samples = pictures()
    stored, artifact = lowered(program_of(Net, samples), format, "float", samples)
    agrees(artifact, stored, samples, atol=1e-5)
    assert {o.type for o in TARGET.operations(artifact, samples)} <= {
        "Conv",
        "FusedConv",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "Add",
        "Relu",
        "Reshape",
        "ReduceMean",
        "ReorderInput",
        "ReorderOutput",
        "Flatten",
        "Shape",
        "Concat",
    }


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(x)
        return out


def rows(count: int = 4) -> Samples:
    return Samples.of(torch.randn(count, 256, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("format", [*INTEGERS, *FLOATS], ids=names)
def test_the_file_grows_by_what_the_format_says(format: Format) -> None:
    """The float file without its weight, and the format's bytes: the rest is the graph around, about one kilobyte, with a function more for blocks."""
    samples = rows()
    program = program_of(Wide, samples)
    around = TARGET.lower(program, samples).size_bytes - 4 * 256 * 128
    artifact = lowered(program, format, "float", samples)[1]
    assert 0 <= artifact.size_bytes - around - format.estimate((128, 256)) < (1200 if format.name.endswith("/1x4") else 1100)


def test_many_layers_share_one_decoder() -> None:
    samples = pictures()
    artifact = lowered(program_of(Net, samples), Masked(values=Codebook(k=8, values=INT8, zero=True), sparsity=0.75), "float", samples)[1]
    model = onnx.load_from_string(artifact.payload)
    onnx.checker.check_model(model)
    assert sorted(f.name for f in model.functions) == ["Bits", "Entries", "Unmask"]
    assert sum(n.domain == DOMAIN for n in model.graph.node) > 6


def test_a_mask_that_would_cost_more_than_it_saves_is_left_out() -> None:
    samples = pictures()
    program = program_of(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten()), samples)
    artifact = lowered(program, Masked(values=Affine(bits=4), sparsity=0.5), "float", samples)[1]
    assert not onnx.load_from_string(artifact.payload).functions


class Tied(nn.Module):
    """An embedding whose table is the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.table(ids).mean(1) @ self.table.weight.T
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rnn(x)[0]
        return out[:, -1]


@pytest.mark.parametrize("format", [Masked(values=INT8, sparsity=0.75), Codebook(k=16), Codebook(k=8, values=INT8)], ids=names)
def test_embeddings_and_recurrent_weights_are_decoded_too(format: Format) -> None:
    tokens = Samples.of(torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0)))
    series = Samples.of(torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)))
    for make, samples in ((lambda: nn.Sequential(nn.Embedding(40, 16), nn.Flatten(), nn.Linear(96, 3)), tokens), (Recurrent, series)):
        stored, artifact = lowered(program_of(make, samples), format, "float", samples)
        agrees(artifact, stored, samples, atol=1e-5)


def test_a_channel_without_weights_keeps_its_bias() -> None:
    samples = rows(16)
    program = program_of(Wide, samples)
    with torch.no_grad():
        program.parameter("head.weight")[3:6] = 0.0
        program.parameter("head.bias")[3:6] = torch.tensor([1.5, -2.0, 0.25])
    stored, artifact = lowered(program, Masked(values=INT8, sparsity=0.75), "integer", samples)
    agrees(artifact, stored, samples, atol=0.03)
    torch.testing.assert_close(TARGET.run(artifact, samples)[0][0, 3:6], torch.tensor([1.5, -2.0, 0.25]), atol=0.03, rtol=0)


def test_it_claims_only_what_it_executes() -> None:
    shared = Codebook(k=16)
    assert TARGET.executes(shared, "conv2d", "float") and not TARGET.executes(shared, "conv2d", "integer")
    assert TARGET.executes(Codebook(values=INT8), "linear", "integer") and TARGET.executes(Masked.pattern(2, 4, INT8), "conv1d", "integer")
    assert not TARGET.executes(Masked(values=INT8), "lstm", "integer") and not TARGET.executes(Masked(values=INT8), "linear", "dynamic")
