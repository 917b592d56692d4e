"""Every claim is checked on the file in the runtime: outputs against the stored program, and the optimised graph read back."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from slimline.core.contracts import Artifact, Operation
from slimline.core.edits import Encode, Numerics, QuantizeValue
from slimline.core.formats import Affine, Float
from slimline.core.plan import Decision
from slimline.core.samples import Samples
from slimline.errors import DataError, LoweringError, UnsupportedFormat
from slimline.methods.static_int8 import StaticInt8
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.sites import find_sites
from slimline.search.workshop import Workshop
from slimline.targets._feed import repeat
from slimline.targets._onnx_plain import VARIANTS
from slimline.targets.onnxruntime import OnnxRuntime

TARGET = OnnxRuntime()
INT8 = Affine(reduce_range=TARGET.saturates())  # what comes out exact on this processor
BITS: tuple[Literal[2, 4, 8], ...] = (8, 4, 2)


class Net(nn.Module):
    """A stem, a residual block, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(y + self.conv(y))
        return self.head(y.mean((2, 3)))


class Words(nn.Module):
    """Keyword arguments, an embedding, a linear layer on three dimensions, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.mix(self.table(ids))) * mask[..., None]
        return self.head(x.sum(1)), x


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rnn(x)[0]
        return out[:, -1]


def images(count: int = 6) -> Samples:
    return Samples.of(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def words(count: int = 4) -> Samples:
    make = torch.Generator().manual_seed(2)
    return Samples.of({"ids": torch.randint(0, 50, (count, 7), generator=make), "mask": torch.ones(count, 7)})


def build(make: Callable[[], nn.Module], samples: Samples) -> Program:
    torch.manual_seed(0)
    model = make().eval()
    return Program.export(model, samples[:2])


def value_edit(program: Program, name: str, samples: Samples) -> QuantizeValue:
    """A min-max grid for a value, zero on it."""
    values = program.run(samples, keep=True).values
    x = values[program.node(name).name]
    x = x.detach()
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = max(high - low, 1e-6) / 255
    return QuantizeValue(name, 8, False, scale, round(-low / scale))


def stored(program: Program, format: Affine, execute: str, samples: Samples, only: Sequence[str] | None = None) -> Program:
    """The program with every weight (or ``only`` those) in ``format``, executed as said."""
    edits: list[Numerics] = []
    for name, use in program.weights.items():
        if only is not None and name not in only:
            continue
        weight = program.parameter(name)
        edits.append(Encode(name, format, format.encode(weight), execute))
        if execute == "integer":
            edits.append(value_edit(program, use.input, samples))
            if not use.final:
                edits.append(value_edit(program, use.output, samples))
    return freeze(quantize(program, edits))


def agree(artifact: Artifact, program: Program, samples: Samples, atol: float) -> None:
    expected = program.run(samples).outputs
    got = TARGET.run(artifact, samples, batch=4)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b.detach(), atol=atol), float((a - b).abs().max())


@functools.cache
def integer(bits: Literal[2, 4, 8]) -> tuple[Program, Artifact]:
    """``Net`` with all layers in integers, stored in ``bits``: made once for all facts about it."""
    samples = images()
    program = stored(build(Net, samples), INT8 if bits == 8 else Affine(bits=bits), "integer", samples)
    return program, TARGET.lower(program, samples[:2])


@functools.cache
def plain() -> tuple[Program, Artifact]:
    """``Net`` in float."""
    program = build(Net, images())
    return program, TARGET.lower(freeze(program), images()[:2])


def types(operations: Sequence[Operation]) -> Counter[str]:
    return Counter(o.type for o in operations)


def graph_of(artifact: Artifact) -> onnx.GraphProto:
    return onnx.load_from_string(artifact.payload).graph


# -- float ------------------------------------------------------------------------------------------


def test_float_artefact_gives_the_models_outputs_at_any_batch() -> None:
    samples = images()
    program, artifact = plain()
    agree(artifact, program, samples, 1e-5)
    agree(artifact, program, samples[:1], 1e-5)
    assert (artifact.inputs, artifact.outputs, artifact.suffix) == (("input",), ("output",), ".onnx")


def test_file_holds_names_a_reader_understands_and_no_metadata() -> None:
    model = onnx.load_from_string(plain()[1].payload)
    graph = model.graph
    onnx.checker.check_model(model)
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [n.name for n in graph.node if n.name] == ["stem.weight", "conv.weight", "head.weight"]
    assert not graph.value_info and not model.metadata_props
    assert not any(thing.metadata_props or thing.doc_string for thing in [*graph.node, *graph.initializer])
    assert "BatchNormalization" not in {n.op_type for n in graph.node}


def test_keyword_inputs_keep_their_names_and_outputs_are_flat() -> None:
    samples = words()
    program = build(Words, samples)
    artifact = TARGET.lower(freeze(program), samples[:2])
    assert artifact.inputs == ("ids", "mask")
    assert artifact.outputs == ("output", "output_1")
    agree(artifact, program, samples, 1e-5)


def test_an_input_called_like_a_short_name_stays_itself() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.tanh(a * 2 + torch.exp(b)) + a

    samples = Samples((), {"a": torch.rand(4, 3), "b": torch.rand(4, 3)})
    program = build(Sum, samples)
    artifact = TARGET.lower(freeze(program), samples[:2])
    assert artifact.inputs == ("a", "b")
    agree(artifact, program, samples, 1e-5)


def test_lowering_is_deterministic() -> None:
    samples = images()
    program, artifact = plain()
    assert TARGET.lower(freeze(program), samples[:2]).payload == artifact.payload


def test_missing_input_is_named() -> None:
    samples = words()
    artifact = TARGET.lower(freeze(build(Words, samples)), samples[:2])
    with pytest.raises(DataError, match="ids, mask"):
        TARGET.run(artifact, Samples((), {"ids": samples.kwargs["ids"]}))


def test_bytes_that_are_no_model_raise_a_typed_error() -> None:
    with pytest.raises(LoweringError):
        TARGET.run(Artifact("onnxruntime", ".onnx", b"nonsense", ("input",), ("output",)), images())


# -- integer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_integer_layers_run_in_integers_whatever_bits_they_are_stored_in(bits: Any) -> None:
    samples = images()
    program, artifact = integer(bits)
    operations = TARGET.operations(artifact, samples, runs=2)
    by_weight = {o.weight: (o.type, o.executes) for o in operations if o.weight}
    assert by_weight == {"stem.weight": ("QLinearConv", "integer"), "conv.weight": ("QLinearConv", "integer"), "head.weight": ("QGemm", "integer")}
    assert "Cast" not in types(operations)  # folded when the session was made
    # One step of the last quantizer at most: the kernels requantize in integers, the reference in float.
    agree(artifact, program, samples, 0.05)


def test_four_bits_halve_and_two_bits_quarter_a_weight_in_the_file() -> None:
    sizes = {}
    for bits in BITS:
        _, artifact = integer(bits)
        kinds = {TensorProto.INT8: 8, TensorProto.INT4: 4, TensorProto.INT2: 2}
        sizes[bits] = sum(len(i.raw_data) for i in graph_of(artifact).initializer if kinds.get(i.data_type) == bits and len(i.dims) > 1)
    weights = 16 * 3 * 9 + 16 * 16 * 9 + 5 * 16
    assert sizes == {8: weights, 4: weights // 2, 2: weights // 4}


def test_residual_addition_between_integer_layers_runs_in_integers() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(16, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.norm(self.stem(x)))
            return self.last(torch.relu(y + self.conv(y)))

    samples = images()
    program = stored(build(Two, samples), INT8, "integer", samples, only=["stem.weight", "conv.weight", "last.weight"])
    found = types(TARGET.operations(TARGET.lower(program, samples[:2]), samples, runs=2))
    assert found["QLinearConv"] + found["Conv"] == 3
    assert (found["QLinearAdd"], found["Add"]) == (1, 0)


class Pooled(Net):
    """The same, with the pooling that models of images mostly have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = nn.functional.adaptive_avg_pool2d(torch.relu(y + self.conv(y)), 1)
        return self.head(torch.flatten(y, 1))


@pytest.mark.parametrize("make", [Net, Pooled])
def test_the_last_sum_and_the_pooling_run_in_integers(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    samples = images(16)
    model = make().eval()
    workshop = Workshop(model, samples[:2], samples, tuple(s for s in find_sites(model, samples[:2])[0] if s.kind == "weight"), TARGET)
    decisions = tuple(Decision(site=p, method=StaticInt8(reduce_range=TARGET.saturates())) for p in workshop.program.weights)
    built = workshop.build(workshop.plan(decisions))
    artifact = workshop.lower(built)
    found = types(TARGET.operations(artifact, samples, runs=2))
    assert (found["QLinearAdd"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (1, 1, 1)
    assert not {"Add", "Relu", "ReduceMean", "GlobalAveragePool"} & set(found)
    assert built.stored is not None
    agree(artifact, built.stored, samples, 0.05)


def test_a_mean_over_words_between_integers_is_no_pooling() -> None:
    def make() -> nn.Module:
        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                out: torch.Tensor = self.head(self.mix(x).mean(1))
                return out

        return Mean()

    samples = Samples.of(torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1)))
    program = stored(build(make, samples), INT8, "integer", samples)
    artifact = TARGET.lower(program, samples[:2])
    assert "ReduceMean" in {n.op_type for n in graph_of(artifact).node}
    agree(artifact, program, samples, 0.05)


def test_a_float_layer_between_integer_ones_stays_in_float() -> None:
    """The runtime rounds such weights per tensor when it loads a file, unless it is kept from it."""

    def make() -> nn.Module:
        middle = nn.Conv2d(8, 8, 3, groups=8)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        with torch.no_grad():
            middle.weight.mul_(torch.logspace(-3, 1, 8).reshape(8, 1, 1, 1))
        return net

    samples = images()
    program = stored(build(make, samples), INT8, "integer", samples, only=["0.weight", "4.weight"])
    artifact = TARGET.lower(program, samples[:2])
    executes = {o.weight: o.executes for o in TARGET.operations(artifact, samples, runs=2) if o.weight}
    assert (executes["0.weight"], executes["2.weight"], executes["4.weight"]) == ("integer", "float", "integer")
    agree(artifact, program, samples, 0.02)


def test_linear_layer_on_three_dimensions_runs_in_integers() -> None:
    samples = words()
    program = stored(build(Words, samples), INT8, "integer", samples, only=["mix.weight"])
    artifact = TARGET.lower(program, samples[:2])
    by_weight = {o.weight: o.executes for o in TARGET.operations(artifact, samples, runs=2) if o.weight}
    assert by_weight["mix.weight"] == "integer"
    agree(artifact, program, samples, 0.05)


def test_conv1d_and_grouped_convolutions_run_in_integers() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv1d(8, 4, 1))

    samples = Samples.of(torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(3)))
    program = stored(build(make, samples), INT8, "integer", samples)
    artifact = TARGET.lower(program, samples[:2])
    operations = TARGET.operations(artifact, samples, runs=2)
    executes = {o.weight: o.executes for o in operations if o.weight}
    assert executes["0.weight"] == executes["2.weight"] == "integer"
    agree(artifact, program, samples, 0.05)


# -- weights only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [Affine(), Affine(bits=4), Affine(bits=2), Affine(granularity="per_tensor")])
def test_weight_only_decodes_once_and_costs_nothing_per_call(format: Affine) -> None:
    samples = images()
    program = stored(build(Net, samples), format, "float", samples)
    artifact = TARGET.lower(program, samples[:2])
    agree(artifact, program, samples, 1e-4)
    found = types(TARGET.operations(artifact, samples, runs=2))
    assert not {"DequantizeLinear", "Cast", "Mul"} & set(found)
    assert sum(numpy_helper.to_array(i).size for i in graph_of(artifact).initializer if i.data_type == TensorProto.FLOAT) < 100


@pytest.mark.parametrize("make", [lambda: nn.Conv1d(4, 6, 3), lambda: nn.ConvTranspose1d(4, 6, 3)])
def test_weight_only_serves_convolutions_of_any_kind(make: Callable[[], nn.Module]) -> None:
    samples = Samples.of(torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(3)))
    base = build(make, samples)
    axis = next(iter(base.weights.values())).axis
    program = stored(base, Affine(bits=4, axis=axis), "float", samples)
    agree(TARGET.lower(program, samples[:2]), program, samples, 1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_grouped_linear_layers_become_block_products(bits: Any) -> None:
    samples = words()
    program = stored(build(Words, samples), Affine(bits=bits, granularity="per_group", group=16), "float", samples, only=["mix.weight", "head.weight"])
    artifact = TARGET.lower(program, samples[:2])
    operations = TARGET.operations(artifact, samples, runs=2)
    assert types(operations)["MatMulNBits"] == 2
    assert [o.executes for o in operations if o.type == "MatMulNBits"] == ["integer"] * 2
    assert {"mix.weight", "head.weight"} <= {o.weight for o in operations}
    agree(artifact, program, samples, 0.05)  # its kernel rounds the activations to 8 bits


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_embedding_rows_are_picked_as_integers(bits: Any, granularity: Any) -> None:
    samples = words()
    program = stored(build(Words, samples), Affine(bits=bits, granularity=granularity), "float", samples, only=["table.weight"])
    artifact = TARGET.lower(program, samples[:2])
    gather = next(n for n in graph_of(artifact).node if n.op_type == "Gather" and n.name == "table.weight")
    kinds = {i.name: i.data_type for i in graph_of(artifact).initializer}
    if bits == 8:
        assert kinds[gather.input[0]] == TensorProto.INT8
    agree(artifact, program, samples, 1e-5)
    float_size = TARGET.lower(freeze(build(Words, samples)), samples[:2]).size_bytes
    assert artifact.size_bytes < float_size - 50 * 32 * 4 * (1 - bits / 32) * 0.8


def test_an_embedding_that_is_the_models_output_lowers() -> None:
    samples = Samples.of(torch.arange(12).reshape(4, 3))
    program = stored(build(lambda: nn.Embedding(12, 8), samples), Affine(), "float", samples)
    agree(TARGET.lower(program, samples[:2]), program, samples, 1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_take_weights_only(kind: Any) -> None:
    samples = Samples.of(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(4)))
    base = build(lambda: Recurrent(kind), samples)
    float_artifact = TARGET.lower(freeze(base), samples[:2])
    agree(float_artifact, base, samples, 1e-5)
    program = stored(base, Affine(), "float", samples)
    artifact = TARGET.lower(program, samples[:2])
    agree(artifact, program, samples, 1e-5)
    assert artifact.size_bytes < 0.6 * float_artifact.size_bytes


def test_one_tensor_used_twice_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).mean(1) @ self.table.weight.T

    samples = Samples.of(torch.arange(12).reshape(4, 3))
    program = stored(build(Tied, samples), Affine(), "float", samples)
    artifact = TARGET.lower(program, samples[:2])
    agree(artifact, program, samples, 1e-5)
    assert artifact.size_bytes < 40 * 16 + 2000


class Masked(nn.Module):
    """A mask made of two, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        return self.mix(x) * ((there > 0) & (x < 1.5) | (x < -1.5))


def test_masks_are_lowered_without_tracing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.Generator().manual_seed(3)
    samples = Samples.of((torch.randn(16, 8, generator=make), torch.randint(0, 2, (16, 8), generator=make)))
    program = build(Masked, samples)

    def again(*_: object, **__: object) -> None:
        raise AssertionError("the graph was traced again")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", again)
    agree(TARGET.lower(program, samples[:2]), program, samples, 1e-6)


# -- dynamic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_dynamic_linear_layers_multiply_integers(bits: Literal[2, 4, 8]) -> None:
    """Whatever the file stores them in."""
    samples = words()
    format = INT8 if bits == 8 else Affine(bits=bits)
    program = stored(build(Words, samples), format, "dynamic", samples, only=["mix.weight", "head.weight"])
    artifact = TARGET.lower(program, samples[:2])
    operations = {o.weight: o for o in TARGET.operations(artifact, samples, runs=2) if o.weight}
    assert operations["mix.weight"].executes == operations["head.weight"].executes == "integer"
    agree(artifact, program, samples, 0.05)  # the input is rounded to 8 bits when it runs


class Recurrences(nn.Module):
    """Two layers, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.rnn(x)[0])
        return out


@pytest.mark.parametrize("bits", [8, 4])
def test_dynamic_lstms_multiply_integers(bits: int) -> None:
    """The recurrent weights may have fewer bits, and need not ask for it themselves."""
    samples = Samples.of(torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(4)))
    base = build(Recurrences, samples)
    weights = [n for n in base.weights if n.startswith("rnn.")]
    formats = {n: INT8 if "weight_ih" in n else Affine(bits=bits) for n in weights}
    edits = [Encode(n, f, f.encode(base.parameter(n)), execute="dynamic" if "weight_ih" in n else "float") for n, f in formats.items()]
    program = freeze(quantize(base, edits))
    artifact = TARGET.lower(program, samples[:2])
    operations = [o for o in TARGET.operations(artifact, samples, runs=2) if o.weight in weights]
    assert {o.weight for o in operations} == set(weights)
    assert {(o.type, o.executes) for o in operations} == {("DynamicQuantizeLSTM", "integer")}
    agree(artifact, program, samples, 0.02)  # what enters is rounded to 8 bits at every step
    float_artifact = TARGET.lower(freeze(base), samples[:2])
    assert {o.weight for o in TARGET.operations(float_artifact, samples, runs=2) if o.type == "LSTM"} == set(weights)
    assert artifact.size_bytes < (0.5 if bits == 8 else 0.4) * float_artifact.size_bytes


def test_a_dynamic_lstm_with_a_float_weight_is_refused_by_name() -> None:
    samples = Samples.of(torch.randn(4, 9, 8))
    program = stored(build(lambda: Recurrent(nn.LSTM), samples), INT8, "dynamic", samples, only=["rnn.weight_hh_l0"])
    with pytest.raises(UnsupportedFormat, match=r"rnn\.weight_hh_l0.*not all of them are integers"):
        TARGET.lower(program, samples[:2])


def test_dynamic_convolutions_are_refused_by_name() -> None:
    samples = images()
    program = stored(build(Net, samples), INT8, "dynamic", samples, only=["conv.weight"])
    with pytest.raises(UnsupportedFormat, match=r"conv\.weight"):
        TARGET.lower(program, samples[:2])


# -- what it claims, what it measures ---------------------------------------------------------------------


def test_it_claims_only_what_it_executes() -> None:
    assert TARGET.executes(Float(), "conv2d", "float")
    assert TARGET.executes(Affine(bits=4), "conv2d", "integer")
    assert not TARGET.executes(Affine(), "conv2d", "dynamic")
    assert not TARGET.executes(Affine(), "lstm", "integer")
    assert not TARGET.executes(Affine(), "embedding", "integer")
    assert not TARGET.executes(Affine(granularity="per_group", group=16), "linear", "integer")
    assert TARGET.executes(Affine(bits=4), "linear", "dynamic") and not TARGET.executes(Affine(bits=4), "lstm", "dynamic")
    assert TARGET.installed() and TARGET.version().count(".") >= 1


def test_latency_counts_every_artefact_alike() -> None:
    samples = images()
    _, artifact = plain()
    first, second = TARGET.latency([artifact, artifact], samples, batch=3, seconds=0.05)
    assert first.runs >= 20 and second.runs >= 20
    assert 0 < first.median <= first.p95
    assert (first.batch, first.threads) == (3, 1)


def test_profile_gives_every_operation_a_time() -> None:
    samples = images()
    _, artifact = plain()
    operations = TARGET.operations(artifact, samples, runs=2)
    assert all(o.milliseconds is not None and o.milliseconds >= 0 for o in operations)
    assert {"stem.weight", "conv.weight", "head.weight"} <= {o.weight for o in operations}


def test_memory_is_weights_plus_the_peak_of_live_activations() -> None:
    samples = Samples.of(torch.zeros(2, 10))
    program = build(lambda: nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 4)), samples)
    artifact = TARGET.lower(freeze(program), samples)
    weights = 4 * (10 * 100 + 100 + 100 * 4 + 4)
    assert TARGET.memory(artifact, samples) == weights + 4 * (10 + 100)  # the first layer reads 10 and writes 100; the tanh is fused into it
    assert TARGET.memory_parts(artifact, samples) == (weights + 4 * (10 + 4), 512)  # the 100 take two whole steps of the arena


def test_four_bit_weights_take_eight_bits_in_memory() -> None:
    samples = images()
    artifacts = [integer(8)[1], integer(4)[1]]
    eight, four = (TARGET.memory(a, samples) for a in artifacts)
    assert eight == four
    assert artifacts[1].size_bytes < artifacts[0].size_bytes


def test_repeat_fills_a_batch_from_fewer_samples() -> None:
    assert repeat(Samples.of(torch.arange(3)), 5).args[0].tolist() == [0, 1, 2, 0, 1]


# -- plain int8 -----------------------------------------------------------------------------------------------


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)))).flatten(1)


class Bright(nn.Module):
    """Every product is the largest that there is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 1)
        for layer in (self.a, self.b):
            nn.init.constant_(layer.weight, 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))


def test_plain_int8_makes_every_variant_of_the_runtimes_own_quantizer() -> None:
    samples = images(16)
    program = build(Wide, samples)
    baseline = TARGET.lower(freeze(program), samples[:2])
    made = list(TARGET.plain_int8(baseline, samples))
    assert len(made) == 12 == len({q.label for q in made})
    expected = program.run(samples).outputs[0]
    for quantized in made:
        assert quantized.artifact is not None, quantized.error
        assert quantized.artifact.size_bytes < 0.5 * baseline.size_bytes
        found = types(TARGET.operations(quantized.artifact, samples, runs=1))
        assert found["QLinearConv"] == 2
        (got,) = TARGET.run(quantized.artifact, samples)
        assert torch.nn.functional.cosine_similarity(got, expected.detach()).min() > 0.95


def test_a_reduced_range_is_exact_on_processors_that_saturate_and_plain_int8_then_takes_it() -> None:
    samples = Samples.of(torch.full((4, 3, 12, 12), 4.0))
    largest = build(Bright, samples)
    errors = {}
    for reduced in (False, True):
        program = stored(largest, Affine(reduce_range=reduced), "integer", samples)
        (got,) = TARGET.run(TARGET.lower(program, samples), samples)
        wanted = program.run(samples).outputs[0]
        errors[reduced] = float((got - wanted).abs().max() / wanted.abs().max())
    assert errors[True] < 0.02
    assert (errors[False] > 0.1) == TARGET.saturates(), errors
    labels = [q.label for q in TARGET.plain_int8(TARGET.lower(freeze(largest), samples[:2]), samples)]
    assert len(labels) == 12 and all(("reduced range" in label) == TARGET.saturates() for label in labels)


def test_plain_int8_of_a_graph_without_convolutions_soon_comes_to_the_dynamic_settings() -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(16, 64))
    program = Program.export(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).eval(), samples[:2])
    baseline = TARGET.lower(freeze(program), samples[:2])
    made = list(itertools.islice(TARGET.plain_int8(baseline, samples), 3))
    assert [q.label.split(", ")[0] for q in made] == ["QDQ", "dynamic", "dynamic"]
    assert made[1].artifact is not None, made[1].error
    assert made[1].artifact.size_bytes < 0.5 * baseline.size_bytes
    assert types(TARGET.operations(made[1].artifact, samples, runs=1))["DynamicQuantizeMatMul"] == 2
    (got,) = TARGET.run(made[1].artifact, samples)
    assert torch.nn.functional.cosine_similarity(got, program.run(samples).outputs[0].detach()).min() > 0.99


def test_plain_int8_records_what_the_quantizer_refuses() -> None:
    nonsense = Artifact("onnxruntime", ".onnx", b"nonsense", ("input",), ("output",))
    (refused,) = TARGET.plain_int8(nonsense, images(), VARIANTS[:1])
    assert refused.artifact is None
    assert refused.error
