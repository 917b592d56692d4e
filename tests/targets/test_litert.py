"""What the .tflite lowering writes is run by LiteRT and held against the program it came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")

from support.lowered import Flat, Residual, apart, exported, images, stored

from slimline.core.contracts import Artifact
from slimline.core.formats import Affine, Float
from slimline.core.samples import Samples
from slimline.errors import LoweringError
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.entry import Gather
from slimline.targets._tflite_reading import Reading
from slimline.targets.litert import LiteRT

TARGET = LiteRT()


@pytest.mark.parametrize("make", [Residual, Flat])
def test_float_models_give_the_same_numbers(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert apart(TARGET, exported(make(), images()), images()) < 1e-5


@pytest.mark.parametrize("make", [Residual, Flat])
def test_static_int8_runs_in_integers_from_end_to_end(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    program = stored(exported(make(), images()), images(), StaticInt8())
    artifact = TARGET.lower(program, images())
    computing = [o for o in TARGET.operations(artifact, images()) if o.type not in ("QUANTIZE", "DEQUANTIZE")]
    assert all(o.executes == "integer" for o in computing)
    assert [o.type for o in TARGET.operations(artifact, images())].count("DEQUANTIZE") == 1  # the output's
    assert {o.weight for o in computing if o.weight} == set(program.encoded)
    assert apart(TARGET, program, images()) < 0.02  # the kernels requantize in integers: one step of 255, now and then two


@pytest.mark.parametrize(("bits", "share"), [(8, 0.25), (4, 0.125)])
def test_weight_only_stores_its_bits_and_computes_in_float(bits: int, share: float) -> None:
    torch.manual_seed(0)
    program = exported(nn.Sequential(nn.Flatten(), nn.Linear(288, 64)), images())
    whole, packed = (TARGET.lower(p, images()).size_bytes for p in (program, stored(program, images(), WeightOnly(bits=bits))))
    assert packed - 2000 < share * whole < packed
    assert apart(TARGET, stored(program, images(), WeightOnly(bits=bits)), images()) < 1e-5


def test_dynamic_linear_layers_take_floats_and_hold_integers() -> None:
    torch.manual_seed(0)
    program = stored(exported(Flat(), images()), images(), DynamicInt8())
    executed = {o.weight: o.executes for o in TARGET.operations(TARGET.lower(program, images()), images()) if o.weight}
    assert executed == {"conv.weight": "float", "fc.weight": "integer", "head.weight": "integer"}
    assert apart(TARGET, program, images()) < 0.02


@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, "edge"])
def test_every_window_reads_what_pytorch_reads(kernel: int | tuple[int, int], stride: int, padding: int | str) -> None:
    pads = 0 if padding == 0 else tuple(k // 2 for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 4, kernel, stride, pads), nn.MaxPool2d(2, 1, 0 if padding == 0 else 1), nn.Conv2d(4, 8, 1, groups=4))
    assert apart(TARGET, exported(layer, images()), images()) < 1e-5


@pytest.mark.parametrize(
    ("dim", "layers"), [(3, (nn.Flatten(), nn.Linear(3 * 12 * 3, 4))), (1, (nn.Conv2d(2, 4, 3),)), (2, (nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(24, 4)))]
)
def test_inputs_that_are_not_read_are_gathered_away(dim: int, layers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    program = exported(nn.Sequential(Gather(dim, [0, 2] if dim == 1 else [1, 4, 5]), *layers), images())
    assert apart(TARGET, program, images()) < 1e-5 and apart(TARGET, stored(program, images(), StaticInt8()), images()) < 0.02


class Joins(nn.Module):
    """Explicit zeros, a dilated layer, average pooling, concatenation, a gate and scaled sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(nn.functional.pad(x, (1, 1, 1, 2))))
        y = nn.functional.hardswish(self.second(x)) * torch.sigmoid(x) - 0.5
        y = self.norm(torch.relu(torch.cat((x, nn.functional.silu(y)), 1)))
        return torch.softmax(nn.functional.avg_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1).flatten(1), -1)


def test_joins_pads_and_gates() -> None:
    torch.manual_seed(0)
    assert apart(TARGET, exported(Joins(), images()), images()) < 1e-5


def test_sequences_are_convolved_along_their_length() -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(9, 6, 20, generator=torch.Generator().manual_seed(2)))
    layers = nn.Sequential(nn.Conv1d(6, 8, 5, stride=2, padding=2), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    program = exported(layers, samples)
    assert apart(TARGET, program, samples) < 1e-5
    assert apart(TARGET, stored(program, samples, StaticInt8()), samples) < 0.02


def test_an_operation_without_an_operator_is_named() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sort(x, -1)[0]

    with pytest.raises(LoweringError, match="sort"):
        TARGET.lower(exported(Sorted(), images()), images())


def test_the_delegates_share_is_told() -> None:
    torch.manual_seed(0)
    artifact = TARGET.lower(exported(Residual(), images()), images())
    delegated = TARGET._delegated(artifact, images())
    assert delegated == frozenset(range(len(Reading.of(artifact.payload).kinds)))


def test_memory_is_constants_and_the_planned_values() -> None:
    program = exported(nn.Sequential(nn.Linear(64, 64)), Samples.of(torch.randn(4, 64)))
    memory = TARGET.memory(TARGET.lower(program, program.example), program.example)
    assert memory == 4 * 64 * 65 + 2 * 4 * 64


def test_bytes_that_are_no_model_are_a_typed_error() -> None:
    with pytest.raises(LoweringError, match="TFL3"):
        TARGET.run(Artifact("litert", ".tflite", b"nonsense", ("x",), ("y",)), images())


def test_claims() -> None:
    assert TARGET.executes(Float(), "conv2d", "float") and TARGET.executes(Affine(bits=4), "linear", "float")
    assert not TARGET.executes(Affine(bits=4), "linear", "integer") and not TARGET.executes(Affine(), "lstm", "float")
    assert not TARGET.executes(Affine(granularity="per_group", group=32), "linear", "float")


@pytest.mark.parametrize("size", [0.0, 1e-7])
def test_a_channel_of_next_to_nothing_keeps_its_bias_in_integers(size: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 10 * 6, 4))
    with torch.no_grad():
        module[0].weight[2].mul_(size)  # type: ignore[union-attr, operator]
        module[0].bias[2] = 2.0  # type: ignore[union-attr, index]
    program = stored(exported(module, images()), images(), StaticInt8())
    assert apart(TARGET, program, images()) < 0.02


def test_average_pooling_beyond_the_edge_is_refused() -> None:
    class Pooled(nn.Module):
        def __init__(self, size: int, stride: int, padding: int = 0) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.AvgPool2d(size, stride, padding, ceil_mode=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.pool(self.conv(x))
            return out

    with pytest.raises(LoweringError, match="ceil_mode"):
        TARGET.lower(exported(Pooled(3, 2), images()), images())
    assert apart(TARGET, exported(Pooled(2, 2), images()), images()) < 1e-5  # nothing reaches beyond


def test_plain_int8_is_of_its_own_quantizer_and_stands_in_line() -> None:
    pytest.importorskip("ai_edge_quantizer", reason="LiteRT's own quantizer is not installed (pip install ai-edge-quantizer)")
    torch.manual_seed(0)
    program = exported(Residual(), images())
    whole = TARGET.lower(program, images())
    (made,) = TARGET.plain_int8(whole, images())
    assert made.artifact is not None, made.error
    assert made.artifact.size_bytes < 0.6 * whole.size_bytes and Reading.of(made.artifact.payload).outside == 0
    assert {o.executes for o in TARGET.untimed(made.artifact) if o.weight} == {"integer"}
    got, expected = TARGET.run(made.artifact, images())[0], program.run(images()).outputs[0].detach()
    assert float((got - expected).abs().max() / (expected.max() - expected.min())) < 0.05
