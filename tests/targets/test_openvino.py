"""What the files hold and what the plug-in executes, beyond what every target promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("openvino", reason="the target openvino is not installed (pip install 'slimline[openvino]')")

from slimline.core.formats import Affine, Float
from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.quantizers import freeze
from slimline.targets.openvino import OpenVino
from slimline.testing.target_suite import inputs_of, lowered

TARGET = OpenVino()


def test_float_layers_compute_in_float32_although_the_default_is_bf16() -> None:
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(4, 256))
    program = freeze(Program.export(nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 8)).eval(), samples))
    (got,) = TARGET.run(TARGET.lower(program, samples), samples)
    assert float((got - program.run(samples).outputs[0]).abs().max()) < 1e-5  # bf16 would be off by 1e-2


@pytest.mark.parametrize("bits", [8, 4])
def test_integer_layers_compute_in_integers_whatever_bits_they_are_stored_in(bits: int) -> None:
    _, artifact = lowered(OpenVino, ("conv2d", "linear"), Affine(bits=bits), "integer")  # type: ignore[arg-type]
    operations = {o.weight: o for o in TARGET.operations(artifact, inputs_of(("conv2d", "linear"), 2)) if o.weight}
    assert {o.backend.lower()[-2:] for o in operations.values()} == {"i8"}
    assert operations["layers.linear.weight"].bytes == 256 * 256


def test_weights_whose_names_begin_with_a_line_are_found_again() -> None:
    """EfficientNet-Lite's are called ``_blocks.0._expand_conv.weight``: its layers had no times, and the search believed that nothing would make it faster."""
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(4, 16, 8, 8))
    network = nn.Sequential()
    network.add_module("_conv", nn.Conv2d(16, 32, 3))
    network.add_module("_7", nn.Conv2d(32, 16, 3))
    program = freeze(Program.export(network.eval(), samples))
    assert {o.weight for o in TARGET.operations(TARGET.lower(program, samples), samples) if o.weight} == {"_conv.weight", "_7.weight"}


def test_the_description_holds_no_shapes_that_a_reader_infers_and_no_records_of_the_conversion() -> None:
    _, artifact = lowered(OpenVino, ("conv2d", "linear"), Float(), "float")
    assert b"<dim>" not in artifact.payload and b"rt_info" not in artifact.payload and b"\n\t" not in artifact.payload
    assert len(artifact.beside[".bin"]) >= 4 * (32 * 64 * 9 + 64 + 256 * 257)


def test_plain_int8_is_of_its_own_quantizer() -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed (pip install nncf)")
    samples = inputs_of(("conv2d", "linear"), 6)
    stored, artifact = lowered(OpenVino, ("conv2d", "linear"), Float(), "float")
    made = list(TARGET.plain_int8(artifact, samples))
    fix = ", overflow fix" if TARGET.saturates() else ""
    assert [q.label for q in made] == [f"NNCF, performance{fix}", f"NNCF, mixed{fix}", f"NNCF, transformer{fix}"]
    for quantized in made:
        assert quantized.artifact is not None, quantized.error
        assert quantized.artifact.size_bytes < 0.5 * artifact.size_bytes
        for a, b in zip(TARGET.run(quantized.artifact, samples), stored.run(samples).outputs, strict=True):
            assert torch.nn.functional.cosine_similarity(a.flatten(1), b.detach().flatten(1)).min() > 0.99
