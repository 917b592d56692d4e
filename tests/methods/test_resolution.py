"""resolution: what is offered, how images are resized, and that the runtime does the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.resolution import Resize, Resolution
from slimline.model.apply import apply_structure
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime


def image(*sides: int, resizable: bool = True) -> Site:
    return Site(id="#input.0", kind="input", op="input", shape=(1, 3, *sides), resizable=resizable)


@pytest.mark.parametrize(
    ("sides", "sizes"),
    [((224, 224), [(192, 192), (160, 160), (128, 128)]), ((32, 32), [(24, 24), (16, 16)]), ((8, 8), [(6, 6), (4, 4)]), ((64, 128), [(48, 96), (32, 64)])],
)
def test_a_few_sizes_are_offered_that_strides_divide(sides: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    assert [(m.height, m.width) for m in Resolution.candidates(image(*sides)) if isinstance(m, Resolution)] == sizes


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (12, 20)], ids=["block means", "bilinear", "below a half"])
def test_the_runtime_resizes_as_torch_does_at_any_batch(size: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    (edit,) = Resolution(height=size[0], width=size[1]).rewrite(model, image(32, 32), None)
    new, samples = apply_structure(model, [edit]), Samples.of(torch.randn(5, 3, 32, 32))
    runtime = OnnxRuntime()
    (got,) = runtime.run(runtime.lower(Program.export(new, samples[:2]), samples[:2]), samples)
    torch.testing.assert_close(got, new(*samples.args).detach(), rtol=1e-4, atol=1e-5)


def test_a_smooth_image_stays_what_it_was() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    for size in (24, 16, 12):
        small = Resize((32, 32), (size, size))(ramp)
        assert small.shape[2:] == (size, size) and abs(float(small.mean()) - 0.5) < 1e-3


def test_a_model_that_fixes_its_size_gets_nothing() -> None:
    assert Resolution.candidates(image(32, 32, resizable=False)) == ()
    with pytest.raises(UnsupportedSite, match="other sizes"):
        Resolution(height=16, width=16).rewrite(nn.Identity(), image(32, 32, resizable=False), None)
