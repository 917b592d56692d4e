"""tucker: the same function where nothing is left out, the elements that were asked for, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.tucker import Tucker
from slimline.model.apply import apply_structure
from slimline.model.structure_statistics import StructureStatistics


def site_of(model: nn.Module, name: str) -> Site:
    return Site(id=name, kind="weight", op="conv2d", shape=tuple(model.get_parameter(name).shape))


def redundant(**options: Any) -> nn.Sequential:
    """A convolution of Tucker ranks 4 and 4 at most."""
    model = nn.Sequential(nn.Conv2d(16, 24, **options))
    with torch.no_grad():
        core = torch.randn(4, 4, *model[0].kernel_size)
        model[0].weight.copy_(torch.einsum("or,rskl,si->oikl", torch.randn(24, 4), core, torch.randn(4, 16)) * 0.1)
    return model.eval()


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": (2, 1), "padding": (1, 0), "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": "same"},
    "oblong": {"kernel_size": (1, 5), "padding": (0, 2)},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_redundant_convolution_stays_the_same_function(options: dict[str, Any]) -> None:
    model = redundant(**options)
    new = apply_structure(model, Tucker(share=0.5).rewrite(model, site_of(model, "0.weight"), None))
    x = torch.randn(2, 16, 9, 11)
    torch.testing.assert_close(new(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", Tucker.candidates(Site(id="w", kind="weight", op="conv2d", shape=(32, 16, 3, 3))), ids=lambda m: m.label)
def test_every_candidate_keeps_to_its_share(method: Tucker) -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3))
    new = apply_structure(model, method.rewrite(model, site_of(model, "0.weight"), None))
    kept = sum(p.numel() for p in new.parameters() if p.ndim > 1)
    assert 0.5 * method.share <= kept / math.prod((32, 16, 3, 3)) <= method.share
    assert new(torch.zeros(1, 16, 8, 8)).shape == (1, 32, 6, 6)


def test_statistics_are_used() -> None:
    model = nn.Sequential(nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Conv2d(24, 2, 1)).eval()
    x = torch.randn(48, 16, 8, 8) * torch.logspace(0, -2, 16)[:, None, None]
    statistics = StructureStatistics.collect(model, Samples.of(x), None, seed=0, moments=True)
    site = site_of(model, "0.weight")
    errors = []
    for known in (None, statistics):
        new = apply_structure(model, Tucker(share=0.3).rewrite(model, site, known))
        errors.append(float((new[0](x) - model[0](x)).detach().square().mean()))  # type: ignore[index, operator]
    assert errors[1] < 0.7 * errors[0]


def test_vbmf_finds_the_ranks_of_a_redundant_layer() -> None:
    model = redundant(kernel_size=3)
    with torch.no_grad():
        model[0].weight.add_(0.002 * torch.randn(model[0].weight.shape))
    (edit,) = Tucker(rank="vbmf").rewrite(model, site_of(model, "0.weight"), None)
    assert tuple(edit.new[1].weight.shape) == (4, 4, 3, 3)  # type: ignore[index]


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (nn.Sequential(nn.Conv2d(16, 16, 3, groups=2)), {}, "2 groups"),
        (nn.Sequential(nn.Linear(16, 16)), {}, "only convolutions"),
        (nn.Sequential(nn.Conv2d(2, 2, 3)), {"share": 0.1}, "no ranks fit"),
        (nn.Sequential(nn.Conv2d(2, 2, 3)), {"kind": "cp", "share": 0.1}, "not one component"),
        (nn.Sequential(nn.Conv2d(16, 16, 3)), {"kind": "cp", "rank": "vbmf"}, "Tucker-2 factoring only"),
        (nn.Sequential(nn.Conv2d(64, 64, 3)), {"rank": "vbmf"}, "saves nothing"),
    ],
)
def test_what_cannot_be_factored_is_refused_with_its_reason(model: nn.Module, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedSite, match=reason):
        Tucker(**options).rewrite(model, site_of(model, "0.weight"), None)


def test_small_pointwise_and_depthwise_layers_get_no_offers() -> None:
    for shape in ((8, 64, 3, 3), (64, 64, 1, 1), (64, 1, 3, 3)):
        assert Tucker.candidates(Site(id="w", kind="weight", op="conv2d", shape=shape)) == ()
