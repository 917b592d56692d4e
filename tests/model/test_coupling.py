"""Which channels go together, on small nets of every kind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimline.core.edits import Keep
from slimline.core.samples import Samples
from slimline.core.site import Refusal, Site
from slimline.model.apply import apply_structure
from slimline.model.coupling import find_channel_sites


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 8, 1)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        x = self.norm(torch.cat([x, self.b(x).relu()], 1))
        return self.head(F.adaptive_avg_pool2d(self.c(x), 1).flatten(1))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).chunk(2, 1)
        x = torch.cat([left, self.d(self.b(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(x).mean((2, 3)))


class Shuffles(nn.Module):
    """Each of the two divides what the other has joined and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b1, self.b2, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        for layer in (self.b1, self.b2):
            left, right = x.chunk(2, 1)
            x = torch.cat([left, layer(right)], 1)
            x = x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.head(self.c(x).mean((2, 3)))


class Flipped(nn.Module):
    """Channels in the opposite order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(torch.flip(self.a(x), [1])).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.g(self.a(x).relu()).relu()).flatten(2).sum(2)


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.n, self.p = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu6(self.p(self.n(self.d(self.a(x))))).amax((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up, self.out = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 10, 3, padding=1),
            nn.ConvTranspose2d(10, 4, 2, stride=2),
            nn.Conv2d(10, 1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        return self.out(torch.cat([self.up(self.b(F.max_pool2d(a, 2)).relu()), a], 1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        s = torch.sigmoid(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))
        return self.head((x * s).mean((2, 3)))


class LayerScale(nn.Module):
    """A parameter beside the layers, a norm over channels, and a pad."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 2)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        x = x + self.gamma * self.b(F.pad(self.norm(x), (1, 1, 1, 1)))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mlp, self.back, self.norm = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)
        self.position = nn.Parameter(torch.rand(1, 4, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x) + self.position
        return self.head(x + self.back(F.gelu(self.mlp(self.norm(x)))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(3, 6), kind(6, 5, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(x))[0])


def flat_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 10), nn.PReLU(10), nn.Linear(10, 4))


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 1))


def decoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6 * 4), nn.Unflatten(1, (-1, 2, 2)), nn.Conv2d(6, 3, 1))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NETS = {
    "residual": (Residual, IMAGE, {"stem": 8, "conv1": 12}),
    "dense": (Dense, IMAGE, {"a": 6, "b": 4, "c": 8}),
    "shuffle": (Shuffle, IMAGE, {"a": 6, "c": 4}),
    "shuffles": (Shuffles, IMAGE, {"a": 4, "c": 4}),
    "flipped": (Flipped, IMAGE, {"a": 8, "b": 6}),
    "grouped": (Grouped, IMAGE, {"a": 6, "g": 4}),
    "separable": (Separable, IMAGE, {"a": 8, "p": 6}),
    "unet": (UNet, IMAGE, {"a": 6, "b": 10, "up": 4}),
    "squeeze_excite": (SqueezeExcite, IMAGE, {"a": 8, "down": 4}),
    "layer_scale": (LayerScale, IMAGE, {"a": 4}),
    "tied": (Tied, torch.randint(0, 11, (2, 4), generator=torch.Generator().manual_seed(1)), {"embedding": 8, "mlp": 16}),
    "lstm": (lambda: Recurrent(nn.LSTM), torch.randn(2, 4, 3), {"embed": 6, "rnn": 5}),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(2, 4, 3), {"embed": 6, "rnn": 5}),
    "flatten": (flat_cnn, IMAGE, {"0": 6, "4": 10}),
    "pixel_shuffle": (pixels, IMAGE, {"0": 4}),
    "unflatten": (decoder, IMAGE, {"1": 6}),
}
NORMALISED_TOGETHER = {"layer_scale": {"a#channels"}, "tied": {"embedding#channels"}}


def build(name: str) -> tuple[nn.Module, Samples]:
    make, inputs, _ = NETS[name]
    torch.manual_seed(0)
    model: nn.Module = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            (
                nn.init.uniform_(module.running_mean),
                nn.init.uniform_(module.running_var, 0.5, 2.0),
                nn.init.uniform_(module.weight, 0.5, 2.0),
                nn.init.uniform_(module.bias),
            )
    return model.eval(), Samples.of(inputs)


def masked(model: nn.Module, site: Site, gone: Sequence[int], samples: Samples) -> torch.Tensor:
    """The slow obvious reference: whatever reads a removed channel gets zeros as its weights there."""
    zeroed = {}
    for member in site.members:
        owner, _, leaf = member.parameter.rpartition(".")
        module = model.get_submodule(owner)
        transposed = isinstance(module, nn.ConvTranspose2d)
        if leaf.startswith("weight") and isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.RNNBase) and member.dim == (0 if transposed else 1):
            value = zeroed.setdefault(member.parameter, model.get_parameter(member.parameter).detach().clone())
            for position in member.positions(tuple(gone)):
                value.select(member.dim, position).zero_()
    with torch.no_grad():
        return torch.func.functional_call(model, zeroed, samples.args, tie_weights=True)


@pytest.mark.parametrize("name", NETS)
def test_the_sites_of_each_kind_of_net_are_found(name: str) -> None:
    model, samples = build(name)
    sites, _ = find_channel_sites(model, samples)
    assert {s.module: s.shape[0] for s in sites} == NETS[name][2]


@pytest.mark.parametrize("name", NETS)
def test_half_the_channels_can_go_and_only_their_contribution_is_lost(name: str) -> None:
    model, samples = build(name)
    for site in find_channel_sites(model, samples)[0]:
        kept, gone = tuple(range(0, site.shape[0], 2)), tuple(range(1, site.shape[0], 2))
        pruned = apply_structure(model, [Keep(member, kept) for member in site.members])
        assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            got = pruned(*samples.args)
        expected = masked(model, site, gone, samples)
        assert got.shape == expected.shape
        if site.id not in NORMALISED_TOGETHER.get(name, set()):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_all_sites_can_be_pruned_at_once(name: str) -> None:
    model, samples = build(name)
    sites, _ = find_channel_sites(model, samples)
    pruned = apply_structure(model, [Keep(m, tuple(range(s.shape[0] // 2))) for s in sites for m in s.members])
    assert pruned(*samples.args).shape == model(*samples.args).shape


def refusal(refusals: tuple[Refusal, ...], where: str) -> str:
    return next(r.reason for r in refusals if r.where == where)


def test_output_channels_stay() -> None:
    sites, refusals = find_channel_sites(*build("residual"))
    assert "head#channels" not in {s.id for s in sites}
    assert "output" in refusal(refusals, "head#channels")


class Fixed(nn.Module):
    """The user's code holds a number that pruning would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).view(-1, 288))


def test_code_that_fixes_a_size_is_refused_with_its_own_error() -> None:
    sites, refusals = find_channel_sites(Fixed().eval(), Samples.of(IMAGE))
    assert sites == ()
    assert "288" in refusal(refusals, "conv#channels")


class Picks(nn.Module):
    """Shapes would not tell that another channel takes the picked one's place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.head(x) + x[:, 3:4]


def test_channels_picked_by_position_are_refused() -> None:
    sites, refusals = find_channel_sites(Picks().eval(), Samples.of(IMAGE))
    assert "conv#channels" not in {s.id for s in sites if 3 in s.members[0].positions((2, 3))}
    assert all(s.members[0].start > 3 for s in sites)
    assert "conv#channels" in {r.where for r in refusals}


def test_channels_whose_order_depends_on_their_number_are_refused() -> None:
    class Rolled(Flipped):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(torch.roll(self.a(x), 3, 1)).mean((2, 3)))

    sites, refusals = find_channel_sites(Rolled().eval(), Samples.of(IMAGE))
    assert "a#channels" not in {s.id for s in sites}
    assert "by position" in refusal(refusals, "a#channels")


def test_a_class_token_before_the_image_is_no_channel_picked_by_position() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.token, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.rand(1, 1, 8)), nn.LayerNorm(8), nn.Linear(8, 2)
            self.position = nn.Parameter(torch.rand(1, 5, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position)[:, 0])

    sites, refusals = find_channel_sites(Token().eval(), Samples.of(IMAGE))
    assert [s.shape for s in sites] == [(8,)], refusals


def test_an_average_over_all_channels_ties_them() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).mean(1).flatten(1))

    sites, refusals = find_channel_sites(Mean().eval(), Samples.of(IMAGE))
    assert sites == ()
    assert "tied" in refusal(refusals, "conv#channels")


def test_a_weight_that_makes_and_reads_the_same_channels_is_a_site() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.step, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embedding(x)
            return self.head(x + self.step(self.step(x).relu()))

    torch.manual_seed(0)
    net, samples = Plain().eval(), Samples.of(torch.randint(0, 11, (2, 4)))
    (site,), _ = find_channel_sites(net, samples)
    assert site.id == "embedding#channels" and site.shape == (8,)
    kept = (0, 2, 3, 6)
    pruned = apply_structure(net, [Keep(member, kept) for member in site.members])
    assert pruned.head.weight is pruned.embedding.weight and pruned.head.in_features == pruned.embedding.embedding_dim == 4
    columns = list(kept)
    x = net.embedding.weight[:, columns][samples.args[0]]
    step = lambda v: F.linear(v, net.step.weight[columns][:, columns], net.step.bias[columns])  # noqa: E731
    torch.testing.assert_close(pruned(*samples.args), F.linear(x + step(step(x).relu()), net.embedding.weight[:, columns]))
