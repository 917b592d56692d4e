"""A file that is put together from a template is the file that the exporter would have made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.contracts import Artifact
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.search.workshop import Workshop
from slimline.targets import _onnx_export, _onnx_lowering, _onnx_template
from slimline.targets.onnxruntime import OnnxRuntime


class Residual(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU6())
        self.a, self.b = nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(width * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(nn.functional.avg_pool2d(self.pool(x), 2).flatten(1))


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 5))


def meaned(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the exporter is asked."""
    calls: list[int] = []
    real = _onnx_export._export

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_onnx_export, "_export", counted)
    for kept in ("_templates", "_hopeless"):
        monkeypatch.setattr(_onnx_template, kept, type(_onnx_template._templates)())
    return calls


def lowered(program: Program, example: Samples) -> bytes:
    return _onnx_lowering.lower(program, example).SerializeToString(deterministic=True)


def alone(program: Program, example: Samples, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr(_onnx_export, "exported", lambda module, two, made: made(module))
        return lowered(program, example)


def same(files: list[bytes], others: list[bytes], samples: Samples) -> bool:
    """Byte for byte; but the width that flattening leaves is left to the runtime."""
    runtime, equal = OnnxRuntime(), True
    for a, b in zip(files, others, strict=True):
        one, other = (runtime.run(runtime.opened(Artifact("onnxruntime", ".onnx", content, (), ())), samples)[0] for content in (a, b))
        equal = equal and abs(len(a) - len(b)) < 20 and torch.equal(one, other)
    return equal


def stored(model: nn.Module, samples: Samples, bits: tuple[int, ...]) -> Program:
    workshop = Workshop(model.eval(), samples[:2], samples, (), OnnxRuntime())
    methods = [StaticInt8(bits=b) if b else WeightOnly(bits=8) for b in bits]
    edits = [
        e
        for i, (name, use) in enumerate(workshop.program.weights.items())
        if use.op != "embedding"
        for e in workshop.numeric_edits(workshop.program, name, methods[i % len(methods)], workshop.statistics)
    ]
    return freeze(quantize(workshop.program, edits))


def test_widths_bits_and_scales_are_filled_in(exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of(torch.randn(16, 1, 8, 8))
    programs = [stored(Residual(*widths), samples, bits) for widths, bits in (((8, 8), (8,)), ((6, 4), (8,)), ((8, 3), (8, 4)), ((4, 8), (4,)))]
    files = [lowered(p, samples) for p in programs]
    assert len(exports) == 1
    assert same(files, [alone(p, samples, monkeypatch) for p in programs], samples)


@pytest.mark.parametrize("make", [normed, meaned])
def test_float_graphs_too(exports: list[int], monkeypatch: pytest.MonkeyPatch, make: type[nn.Module]) -> None:
    samples = Samples.of(torch.randn(4, 1, 8, 8))
    programs = [Program.export(make(width).eval(), samples) for width in (8, 8, 5)]
    files = [lowered(p, samples) for p in programs]
    assert len(exports) == (2 if make is normed else 1), "a norm's size is written into the graph, a mean's is not"
    assert same(files, [alone(p, samples, monkeypatch) for p in programs], samples)


class Words(nn.Module):
    """A mean over the vectors of the words, of which there are more than the exporter folds constants of."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20_000, 8), nn.Linear(8, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.table(ids).mean(1))
        return scores


def test_a_wide_table_has_a_template(exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of(torch.randint(0, 20_000, (4, 6)))
    programs = []
    for _ in range(2):
        workshop = Workshop(Words().eval(), samples[:2], samples, (), OnnxRuntime())
        edits = [e for name in workshop.program.weights for e in workshop.numeric_edits(workshop.program, name, WeightOnly(bits=8), workshop.statistics)]
        programs.append(freeze(quantize(workshop.program, edits)))
    files = [lowered(p, samples) for p in programs]
    assert len(exports) == 1, "its zero points are cast in the graph"
    assert same(files, [alone(p, samples, monkeypatch) for p in programs], samples)


def test_a_large_graph_is_exported_each_time(exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a template holds its tensors four times more."""
    monkeypatch.setattr(_onnx_template, "LARGE", 100)
    samples = Samples.of(torch.randn(4, 1, 8, 8))
    files = [lowered(Program.export(meaned(8).eval(), samples), samples) for _ in range(2)]
    assert len(exports) == 2 and len(files[0]) == len(files[1])


def test_mixed_ways_of_storing(exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples.of(torch.randn(16, 1, 8, 8))
    programs = [stored(Residual(8, 8), samples, bits) for bits in ((8, 0), (0, 8), (8, 0))]
    files = [lowered(p, samples) for p in programs]
    assert len(exports) == 2
    assert same(files, [alone(p, samples, monkeypatch) for p in programs], samples)


def test_no_template_where_a_tensor_was_folded_away(exports: list[int]) -> None:
    class Doubled(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (self.scale + self.shift)

    runtime = OnnxRuntime()
    for width in (4, 4, 3):
        samples, module = Samples.of(torch.rand(2, width)), Doubled(width).eval()
        program = Program.export(module, samples)
        (found,) = runtime.run(runtime.lower(program, samples), samples)
        torch.testing.assert_close(found, module(samples.tensors[0]))
    assert len(exports) == 4, "the template that was of no use, once, and each program itself"


class Separable(nn.Module):
    """As in mobile networks: depthwise, pointwise, squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.point = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)
        self.stem, self.gate, self.head = nn.Conv2d(1, width, 3, stride=2), nn.Conv2d(width, width, 1), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(nn.functional.hardswish(self.depth(self.stem(x))))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


class Encoder(nn.Module):
    """One layer of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.layer = nn.Linear(8, width), nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.inputs(x[:, 0])).mean(1))


@pytest.mark.parametrize("make", [Separable, Encoder])
def test_depthwise_layers_and_transformers_have_templates(exports: list[int], monkeypatch: pytest.MonkeyPatch, make: type[nn.Module]) -> None:
    samples = Samples.of(torch.randn(4, 1, 8, 8))
    programs = [Program.export(make(width).eval(), samples) for width in (8, 8, 6)]  # type: ignore[call-arg]
    files = [lowered(p, samples) for p in programs]
    assert len(exports) == 2, "one for each width"
    assert same(files, [alone(p, samples, monkeypatch) for p in programs], samples)


def test_ranges_narrower_than_the_type_stay_apart(exports: list[int]) -> None:
    samples = Samples.of(torch.randn(16, 1, 8, 8))
    program = stored(Residual(8, 8), samples, (8,))
    assert any(isinstance(e.format, Affine) for e in program.encoded.values())
    lowered(program, samples)
    for node in program.graph.nodes:
        if node.target in _onnx_template.SCALED:
            node.args = (*node.args[:3], node.args[3] + 1, *node.args[4:])
    program.module.recompile()
    lowered(program, samples)
    assert len(exports) == 2
