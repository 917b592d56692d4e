"""Files for microcontrollers, in the micro interpreter: outputs, arena, header."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
pytest.importorskip("tflite_micro", reason="the micro interpreter is not installed (pip install tflite-micro)")

from slimline.core.formats import Affine, Float
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import LoweringError
from slimline.methods.static_int8 import StaticInt8
from slimline.model.between import completing
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics
from slimline.targets._micro_arena import arena
from slimline.targets._tflite_reading import Reading
from slimline.targets.litert_micro import LiteRTMicro

TARGET = LiteRTMicro()


def separable() -> nn.Module:
    def block(stride: int) -> list[nn.Module]:
        return [nn.Conv2d(16, 16, 3, stride, 1, groups=16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU()]

    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), *block(1), *block(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 768))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(x + self.c(torch.relu(self.b(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {"separable": separable, "plain": plain, "perceptron": perceptron, "residual": Residual}


def samples(count: int = 16) -> Samples:
    return Samples.of(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


def integer(make: Callable[[], nn.Module]) -> Program:
    torch.manual_seed(0)
    program = Program.export(make().eval(), samples())
    statistics = ProgramStatistics(program, samples())
    edits = [e for k, u in program.weights.items() for e in StaticInt8().rewrite(program, Site(id=k, kind="weight", op=u.op, shape=u.shape), statistics)]
    return freeze(quantize(program, [*edits, *completing(program, statistics, edits)]))  # type: ignore[arg-type, list-item]


def test_it_is_registered_under_a_name_with_a_hyphen() -> None:
    assert find("targets", "litert-micro") is LiteRTMicro


@pytest.mark.parametrize("name", MODELS)
def test_integer_models_agree_in_the_micro_interpreter(name: str) -> None:
    program = integer(MODELS[name])
    artifact = TARGET.lower(program, samples())
    got, expected = TARGET.run(artifact, samples())[0], program.run(samples()).outputs[0]
    assert float((got - expected).abs().max() / (expected.max() - expected.min())) < 0.02
    assert "DEQUANTIZE" not in Reading.of(artifact.payload).kinds  # integers go in and come out


@pytest.mark.parametrize("name", MODELS)
def test_the_planned_arena_is_the_interpreters_within_five_percent(name: str) -> None:
    artifact = TARGET.lower(integer(MODELS[name]), samples())
    planned, (head, tail) = arena(Reading.of(artifact.payload)), TARGET.measured_arena(artifact)
    assert planned.head == head
    assert abs(planned.nbytes - head - tail) <= 0.05 * (head + tail)
    assert TARGET.memory(artifact, samples()) == planned.nbytes


def test_a_float_model_runs_too_and_takes_more() -> None:
    torch.manual_seed(0)
    program = Program.export(separable().eval(), samples())
    artifact = TARGET.lower(program, samples())
    torch.testing.assert_close(TARGET.run(artifact, samples())[0], program.run(samples()).outputs[0].detach(), rtol=1e-4, atol=1e-5)
    planned, (head, tail) = arena(Reading.of(artifact.payload)), TARGET.measured_arena(artifact)
    assert abs(planned.nbytes - head - tail) <= 0.05 * (head + tail)
    small = TARGET.lower(integer(separable), samples())
    assert TARGET.memory(small, samples()) < 0.5 * planned.nbytes and small.size_bytes < 0.75 * artifact.size_bytes


def test_what_the_interpreter_lacks_is_named_before_it_runs() -> None:
    with pytest.raises(LoweringError, match="GELU"):
        TARGET.lower(Program.export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()).eval(), samples()), samples())


def test_the_header_holds_the_file_and_the_arena(tmp_path: Path) -> None:
    artifact = TARGET.lower(integer(plain), samples())
    (content,) = TARGET.products(artifact, "model").values()
    body = bytes(int(b, 16) for b in re.findall(rb"0x([0-9a-f]{2})", content))
    assert body == artifact.payload
    assert int(re.search(rb"model_arena_bytes = (\d+)", content)[1]) == sum(TARGET.measured_arena(artifact))  # type: ignore[index]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to try the header with")
    (tmp_path / "model.h").write_bytes(content)
    (tmp_path / "main.c").write_text('#include "model.h"\nint main(void) { return model_tflite[4] == 0x54 && sizeof model_tflite == model_len ? 0 : 1; }\n')
    subprocess.run([compiler, "-Wall", "-Werror", "-o", str(tmp_path / "main"), str(tmp_path / "main.c")], check=True)
    assert subprocess.run([str(tmp_path / "main")], check=False).returncode == 0


def test_claims_are_integers_or_nothing() -> None:
    assert TARGET.executes(Affine(), "conv2d", "integer") and TARGET.executes(Float(), "linear", "float")
    assert not TARGET.executes(Affine(), "linear", "float") and not TARGET.executes(Affine(), "linear", "dynamic")


def test_constants_out_of_line_are_refused_and_read_in_line() -> None:
    """As ai-edge-quantizer writes them: behind the model, by offset, which the micro interpreter does not know."""
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(4, 32))
    artifact = TARGET.lower(Program.export(nn.Sequential(nn.Linear(32, 32)).eval(), samples), samples)
    reading = Reading.of(artifact.payload)
    weight = next(b for b in reading.model.buffers if b.data is not None and len(b.data) == 4 * 32 * 32)
    content, weight.data, weight.offset, weight.size = bytes(weight.data), None, 1 << 20, 4 * 32 * 32
    moved = replace(artifact, payload=reading.pack().ljust(1 << 20, b"\0") + content)
    with pytest.raises(LoweringError, match="1 of the file's constants stand out of line"):
        TARGET.run(moved, samples)
    again = replace(artifact, payload=Reading.of(moved.payload).pack())
    assert torch.equal(TARGET.run(again, samples)[0], TARGET.run(artifact, samples)[0])
