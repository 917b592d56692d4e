"""What the .pte lowering writes is run by ExecuTorch and held against the program it came from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("executorch", reason="ExecuTorch is not installed (pip install 'slimline[executorch]')")

from support.lowered import Flat, Residual, apart, exported, images, stored

from slimline.core.contracts import Artifact
from slimline.core.edits import Numerics
from slimline.core.formats import Affine, Float
from slimline.core.plan import Method
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import LoweringError, UsageError
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.between import completing
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics
from slimline.targets._executorch_file import File
from slimline.targets.executorch import ExecuTorch

TARGET = ExecuTorch()
MOBILE = Path(__file__).parents[2] / "examples" / "mobile"


@pytest.mark.parametrize("make", [Residual, Flat])
def test_float_models_give_the_same_numbers_in_one_delegate(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    program = exported(make(), images())
    assert apart(TARGET, program, images()) < 1e-5
    operations = TARGET.operations(TARGET.lower(program, images()), images())
    assert {o.backend for o in operations} == {"XNNPACK"}
    assert {o.weight for o in operations if o.weight} == set(program.weights)


@pytest.mark.parametrize("make", [Residual, Flat])
def test_static_int8_runs_in_integers_with_the_plans_scales(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    program = stored(exported(make(), images()), images(), StaticInt8())
    artifact = TARGET.lower(program, images())
    layers = {o.weight: o.executes for o in TARGET.operations(artifact, images()) if o.weight}
    assert layers == dict.fromkeys(program.encoded, "integer")
    sums = {o.executes for o in TARGET.operations(artifact, images()) if o.type.startswith(("Add", "Clamp"))}
    assert sums <= {"integer"}  # whose names do not tell
    assert apart(TARGET, program, images()) < 0.02  # the kernels requantize in integers: one step of 255, now and then two
    (graph,) = File.of(artifact.payload).graphs.values()
    scales = {bytes(e.parts["scale"].numpy().tobytes()) for e in program.encoded.values()}
    kept = {
        graph.content(v["quant"]["scale_buffer_idx"])
        for v in graph.values.values()
        if v.get("quant", {}).get("scale_buffer_idx") and graph.dtype(v["id_out"]) == "qcint8"
    }
    assert kept == scales


@pytest.mark.parametrize(("method", "share"), [(WeightOnly(), 0.25), (WeightOnly(bits=4), 0.125), (WeightOnly(bits=4, group=32), 0.125)])
def test_weight_only_stores_its_bits(method: WeightOnly, share: float) -> None:
    torch.manual_seed(0)
    program = exported(nn.Sequential(nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 32)), images())
    whole, packed = (TARGET.lower(p, images()).size_bytes for p in (program, stored(program, images(), method)))
    assert packed - 4000 < share * whole < packed
    assert apart(TARGET, stored(program, images(), method), images()) < (0.02 if method.group else 1e-5)


def test_a_float_layer_between_integer_ones_stays_in_float() -> None:
    torch.manual_seed(0)
    program = exported(Flat(), images())
    statistics = ProgramStatistics(program, images())
    edits: list[Numerics] = []
    for name, use in program.weights.items():
        method: Method = WeightOnly() if name == "fc.weight" else StaticInt8()
        edits += method.rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)  # type: ignore[arg-type]
    mixed = freeze(quantize(program, [*edits, *completing(program, statistics, edits)]))
    executed = {o.weight: o.executes for o in TARGET.operations(TARGET.lower(mixed, images()), images()) if o.weight}
    assert executed == {"conv.weight": "integer", "fc.weight": "float", "head.weight": "integer"}
    assert apart(TARGET, mixed, images()) < 0.02


@pytest.mark.parametrize("integer", [("0.weight",), ("3.weight",), ("0.weight", "3.weight")])
def test_padding_between_integer_and_float_layers_is_read_by_either(integer: tuple[str, ...]) -> None:
    """Images that are padded on two sides before a convolution of stride 2, as in EfficientNet-Lite: XNNPACK refused the float layer behind it, and no candidate could be built."""
    torch.manual_seed(0)
    program = exported(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2)), images())
    statistics = ProgramStatistics(program, images())
    edits: list[Numerics] = []
    for name in integer:
        use = program.weights[name]
        edits += StaticInt8().rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)
    mixed = freeze(quantize(program, [*edits, *completing(program, statistics, edits)]))
    executed = {o.weight: o.executes for o in TARGET.operations(TARGET.lower(mixed, images()), images()) if o.weight}
    assert executed == {name: "integer" if name in integer else "float" for name in ("0.weight", "3.weight")}
    assert apart(TARGET, mixed, images()) < 0.02


@pytest.mark.parametrize("bits", [8, 4])
def test_dynamic_linear_layers_take_floats_and_hold_integers(bits: int) -> None:
    torch.manual_seed(0)
    program = stored(exported(Flat(), images()), images(), DynamicInt8(bits=bits))
    executed = {o.weight: o.executes for o in TARGET.operations(TARGET.lower(program, images()), images()) if o.weight}
    assert executed == {"conv.weight": "float", "fc.weight": "integer", "head.weight": "integer"}
    assert apart(TARGET, program, images()) < 0.02


@pytest.mark.parametrize("bits", [8, 4])
def test_embeddings_are_gathered_as_integers(bits: int) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(200, 32), nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.table(x).mean(1))
            return out

    torch.manual_seed(0)
    words = Samples.of(torch.randint(0, 200, (9, 5), generator=torch.Generator().manual_seed(1)))
    program = stored(exported(Bag(), words), words, WeightOnly(bits=bits))
    operations = TARGET.operations(TARGET.lower(program, words), words)
    assert {"table.weight", "head.weight"} == {o.weight for o in operations if o.weight}
    assert apart(TARGET, program, words) < 1e-5


def test_sequences_are_convolved_along_their_length() -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(9, 6, 20, generator=torch.Generator().manual_seed(2)))
    layers = nn.Sequential(nn.Conv1d(6, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    program = exported(layers, samples)
    assert apart(TARGET, program, samples) < 1e-5
    assert apart(TARGET, stored(program, samples, StaticInt8()), samples) < 0.02


def test_equal_layers_are_told_apart_by_their_place() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 24)
    twins = nn.Sequential(nn.Flatten(), nn.Linear(288, 24), layer, nn.ReLU(), nn.Linear(24, 24))
    with torch.no_grad():
        twins[4].weight.copy_(layer.weight)  # type: ignore[union-attr, operator, arg-type]
    program = exported(twins, images())
    found = [o.weight for o in TARGET.operations(TARGET.lower(program, images()), images()) if o.weight]
    assert found == list(program.weights)


def test_memory_is_constants_inputs_outputs_and_what_the_delegate_works_in() -> None:
    program = exported(nn.Sequential(nn.Linear(64, 64)), Samples.of(torch.randn(4, 64)))
    memory = TARGET.memory(TARGET.lower(program, program.example), program.example)
    assert memory == 4 * 64 * 65 + 4 * 64 + 16 * 4 * 64 + 64  # the output is planned for 16 samples, in a buffer that ends 64 bytes later


def test_more_samples_at_once_than_a_file_takes_are_refused_by_the_clock_alone() -> None:
    program = exported(nn.Sequential(nn.Linear(8, 8)), Samples.of(torch.randn(4, 8)))
    artifact = TARGET.lower(program, program.example)
    assert len(TARGET.run(artifact, Samples.of(torch.randn(40, 8)))[0]) == 40
    with pytest.raises(UsageError, match="up to 16"):
        TARGET.latency([artifact], program.example, batch=17)


def test_bytes_that_are_no_model_are_a_typed_error() -> None:
    with pytest.raises(LoweringError):
        TARGET.run(Artifact("executorch", ".pte", b"nonsense", ("x",), ("y",)), images())
    with pytest.raises(LoweringError, match="ET"):
        File.of(b"nonsense")


def test_an_operation_without_a_kernel_is_named() -> None:
    volumes = Samples.of(torch.randn(4, 2, 4, 4, 4))
    with pytest.raises(LoweringError, match="conv3d"):
        TARGET.lower(exported(nn.Sequential(nn.Conv3d(2, 3, 3)), volumes), volumes)


def test_the_runtimes_own_complaint_is_in_the_message() -> None:
    program = exported(nn.Sequential(nn.Linear(8, 8)), Samples.of(torch.randn(4, 8)))
    artifact = TARGET.lower(program, program.example)
    with pytest.raises(LoweringError, match=r"XNNExecutor.*invalid_parameter"):
        TARGET.run(artifact, Samples.of(torch.randn(2, 9)))


def test_claims() -> None:
    group = Affine(bits=4, granularity="per_group", group=32)
    assert TARGET.executes(Float(), "conv2d", "float") and TARGET.executes(group, "linear", "float")
    assert TARGET.executes(Affine(), "conv2d", "integer") and not TARGET.executes(Affine(bits=4), "conv2d", "integer")
    assert not TARGET.executes(Affine(), "conv2d", "float") and not TARGET.executes(group.model_copy(update={"group": 16}), "linear", "float")


def test_the_example_in_cpp_gives_the_same_numbers(tmp_path: Path) -> None:
    import executorch

    package = Path(next(iter(executorch.__path__)), "share", "cmake")
    if shutil.which("cmake") is None or shutil.which("c++") is None or not package.is_dir():
        pytest.skip("no compiler, or a package of ExecuTorch without headers")
    torch.manual_seed(0)
    program = stored(exported(Residual(), images()), images(), StaticInt8())
    artifact = TARGET.lower(program, images())
    artifact.write(tmp_path / "model.pte")
    sample = images()[:1]
    sample.args[0].numpy().tofile(tmp_path / "input.f32")
    build = tmp_path / "build"
    for command in (["-S", str(MOBILE / "executorch"), "-B", str(build), f"-DCMAKE_PREFIX_PATH={package}"], ["--build", str(build)]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    done = subprocess.run([build / "runner", tmp_path / "model.pte", tmp_path / "input.f32", "1,3,12,8"], check=True, capture_output=True, text=True)
    got = torch.tensor([float(line) for line in done.stdout.split()])
    torch.testing.assert_close(got, TARGET.run(artifact, sample)[0][0])
    assert "median" in done.stderr
