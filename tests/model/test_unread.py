"""Channels that no weight reads, or that are the same for every sample, are found, and taken out without a change of what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.formats import Affine
from slimline.core.plan import Decision
from slimline.core.samples import Samples
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.sites import find_sites
from slimline.model.unread import read_channels, weights_of
from slimline.search.workshop import Built, Workshop
from slimline.targets.onnxruntime import OnnxRuntime


class Residual(nn.Module):
    """A stem, a block whose inner channels are its own, a depthwise convolution, and a head behind flattened maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.norm, self.two = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.two(self.norm(self.one(x)).relu())).relu()
        return self.head(self.depth(x).relu())  # type: ignore[no-any-return]


def workshop(model: nn.Module, methods: Any) -> tuple[Workshop, Built]:
    x = torch.randn(160, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = Samples.of(x)
    sites, _ = find_sites(model, samples[:2])
    shop = Workshop(model, samples[:2], samples, sites, OnnxRuntime())
    plan = shop.plan(tuple(Decision(site=name, method=methods(name)) for name in shop.program.weights))
    return shop, shop.build(plan)


def zero(built: Built, parameter: str, dim: int, places: list[int]) -> None:
    with torch.no_grad():
        built.training.parameter(parameter).index_fill_(dim, torch.tensor(places), 0.0)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Residual()
    for _ in range(3):
        net(torch.randn(64, 3, 4, 4))
    return net.eval()


def ids(read: dict[str, tuple[int, ...]]) -> dict[str, int]:
    return {site.removesuffix("#channels"): len(index) for site, index in read.items()}


@pytest.mark.parametrize("methods", [lambda name: StaticInt8(bits=8, reduce_range=True), lambda name: WeightOnly(bits=8)], ids=["static_int8", "weight_only"])
def test_what_nothing_reads_goes_and_the_model_gives_what_it_gave(model: nn.Module, methods: Any) -> None:
    shop, built = workshop(model, methods)
    assert shop.without_unread(built) is built, "everything is read"
    zero(built, "two.weight", 1, [0, 3, 4])
    zero(built, "head.3.weight", 1, [*range(15)])
    narrow = shop.without_unread(built)
    assert ids(dict(narrow.read)) == {"one": 9, "head.1": 5}
    assert [tuple(narrow.program.parameter(n).shape) for n in ("one.weight", "two.weight", "head.1.weight", "head.3.weight")] == [
        (9, 8, 3, 3), (8, 9, 3, 3), (5, 128), (4, 5)
    ]  # fmt: skip
    few = Samples.of(torch.randn(50, 3, 4, 4))
    wide_file, narrow_file = shop.lower(built), shop.lower(narrow)
    assert built.stored is not None and narrow.stored is not None
    expected = built.stored(few)
    assert torch.allclose(narrow.stored(few), expected, atol=float(expected.abs().max()) / 100) and narrow.program.macs() < built.program.macs()
    assert len(narrow_file.payload) < len(wide_file.payload)
    found = OnnxRuntime().run(narrow_file, few)[0]
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_what_goes_reads_nothing_either(model: nn.Module) -> None:
    """All that reads some channels of the flattened maps goes, and with it these channels, through the residual sum and the depthwise layer, where nothing else reads them."""
    shop, built = workshop(model, lambda name: WeightOnly(bits=8))
    zero(built, "head.3.weight", 1, [0])
    with torch.no_grad():
        built.training.parameter("head.1.weight")[1:, :32] = 0.0  # two of eight maps of 16 positions are read by the first output alone
    zero(built, "one.weight", 1, [0, 1])
    assert ids(read_channels(model, shop.sites, weights_of(built.training))) == {"head.1": 19, "stem": 6}
    zero(built, "one.weight", 1, [5])
    assert ids(read_channels(model, shop.sites, weights_of(built.training))) == {"head.1": 19, "stem": 6}, "the head reads the sixth"


@pytest.mark.parametrize("methods", [lambda name: StaticInt8(bits=8, reduce_range=True), lambda name: WeightOnly(bits=8)], ids=["static_int8", "weight_only"])
def test_what_is_the_same_for_every_sample_goes_into_the_biases_that_read_it(model: nn.Module, methods: Any) -> None:
    shop, built = workshop(model, methods)
    with torch.no_grad():
        built.training.parameter("head.1.bias").copy_(torch.linspace(-1.0, 1.0, 20))
        built.training.parameter("one.bias")[:4] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    zero(built, "head.1.weight", 0, [0, 1, 18, 19])
    zero(built, "one.weight", 0, [0, 1])
    narrow = shop.without_unread(built)
    assert ids(dict(narrow.read)) == {"head.1": 16, "one": 11}, "the first channel is 1 but for the zeros that it is padded with"
    assert narrow.read["one#channels"][0] == 0
    few = Samples.of(torch.randn(50, 3, 4, 4))
    file = shop.lower(narrow)
    shop.lower(built)
    assert built.stored is not None and narrow.stored is not None
    expected = built.stored(few)
    assert torch.allclose(narrow.stored(few), expected, atol=float(expected.abs().max()) / 100)
    assert not torch.allclose(narrow.stored.parameter("head.3.bias"), built.stored.parameter("head.3.bias"))
    assert float((OnnxRuntime().run(file, few)[0] - expected).norm() / expected.norm()) < 0.02


def test_something_stays_of_every_site(model: nn.Module) -> None:
    shop, built = workshop(model, lambda name: WeightOnly(bits=8))
    zero(built, "two.weight", 1, [*range(12)])
    narrow = shop.without_unread(built)
    assert narrow.read["one#channels"] == (0,)


def test_groups_of_inputs_with_a_scale_each_stay_whole(model: nn.Module) -> None:
    shop, built = workshop(model, lambda name: WeightOnly(bits=4, group=32) if name == "head.1.weight" else WeightOnly(bits=8))
    assert isinstance(encoded := built.training.encoded["head.1.weight"].format, Affine) and encoded.granularity == "per_group"
    zero(built, "head.3.weight", 1, [0])
    zero(built, "two.weight", 1, [3])
    assert ids(read_channels(model, shop.sites, weights_of(built.training))) == {"head.1": 19, "one": 11}
    assert ids(dict(shop.without_unread(built).read)) == {"one": 11}, "what can be taken out is, beside what cannot"


class Computed(nn.Module):
    """Weights that are computed, a layer over one vector, and branches that are interleaved before a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up, self.down = nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 5, 3)
        self.query, self.fc = nn.Parameter(torch.randn(7)), nn.Linear(7, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack((self.one(x).relu(), self.two(x).relu()), 2).flatten(1, 2)
        weight = self.down.weight - self.down.weight.mean((1, 2, 3), keepdim=True)
        maps = nn.functional.conv2d(self.up(both).relu(), weight, self.down.bias).relu()
        head = self.head.weight - self.head.weight.mean()
        return nn.functional.linear(maps.mean((2, 3)) + self.fc(self.query), head, self.head.bias)


def test_weights_that_are_computed_and_layers_that_others_are_interleaved_for_are_no_obstacle() -> None:
    torch.manual_seed(0)
    net = Computed().eval()
    shop, built = workshop(net, lambda name: WeightOnly(bits=8))
    assert "up.weight" in built.training.encoded and "down.weight" not in built.training.encoded
    zero(built, "up.weight", 0, [0, 2])
    narrow = shop.without_unread(built)
    few = Samples.of(torch.randn(20, 3, 4, 4))
    shop.lower(built), shop.lower(narrow)
    assert built.stored is not None and narrow.stored is not None and torch.allclose(narrow.stored(few), built.stored(few), atol=1e-3)


def test_a_norm_over_the_channels_would_give_something_else() -> None:
    """Nothing reads the first four, but the norm's mean does."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 4)).eval()
    shop, built = workshop(net, lambda name: WeightOnly(bits=8))
    zero(built, "3.weight", 1, [0, 1, 2, 3])
    assert read_channels(net, shop.sites, weights_of(built.training)) and shop.without_unread(built) is built
