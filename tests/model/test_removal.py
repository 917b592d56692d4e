"""Many sites tried in one run give what each tried alone gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import fx, nn

from slimline.core.edits import keep_channels
from slimline.core.samples import Samples
from slimline.model import removal
from slimline.model.apply import apply_structure
from slimline.model.coupling import assemble, find_channel_sites
from slimline.model.labels import Labels
from slimline.model.program import Program
from slimline.model.removal import Coupled, faults, separating
from slimline.model.traced import Traced, outputs_of

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Inverted(nn.Module):
    """An inverted residual, as of MobileNetV2."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(2 * width, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if x.shape == y.shape else y


class Stacked(nn.Module):
    """Two layers that must stay equally wide, which nothing but the stacking of their outputs says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.between, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.a(x).relu(), self.b(x).relu()], 1)
        return self.head(self.between(both.flatten(1)).relu())


class Normed(nn.Module):
    """Norms over channels in a chain: none of its removals can be told from the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x)


class Picking(nn.Module):
    """A chain in which one layer's code wants eight channels."""

    def __init__(self, depth: int = 12, faulty: int | None = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.head = nn.Linear(8, 2)
        self.faulty = faulty

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x).relu()
            if i == self.faulty:
                assert x.shape[-1] == 8, "eight are wanted"
        return self.head(x)


def inverted() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Inverted(8, 8) for _ in range(3)), Inverted(8, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def vgg() -> nn.Module:
    layers = [m for i, o in ((3, 6), (6, 8), (8, 10)) for m in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))


NETS = {
    "inverted residuals": (inverted, IMAGE),
    "vgg": (vgg, IMAGE),
    "stacked": (Stacked, torch.randn(2, 4)),
    "norms over channels": (Normed, torch.randn(2, 8)),
    "one faulty": (Picking, torch.randn(2, 8)),
}


def found(traced: Traced) -> list[Coupled]:
    return assemble(Labels(traced.graph, traced.model, traced.samples), traced.model)[0]


@pytest.mark.parametrize("name", NETS)
def test_each_site_passes_or_fails_as_it_does_alone(name: str) -> None:
    make, inputs = NETS[name]
    traced = Traced(make().eval(), Samples.of(inputs))
    coupled = found(traced)
    assert len(coupled) > 2
    alone = {c.site.id: reason for c in coupled if (reason := faults(traced, [c]).reasons.get(c.site.id))}
    assert faults(traced, coupled).reasons == alone
    assert bool(alone) == (name in ("stacked", "one faulty"))


def test_layers_that_must_shrink_together_do_not_pass_together() -> None:
    sites, refusals = find_channel_sites(Stacked().eval(), Samples.of(torch.randn(2, 4)))
    assert [s.id for s in sites] == ["between#channels"]
    assert {r.where for r in refusals if "stack expects" in r.reason} == {"a#channels", "b#channels"}


def test_the_faulty_one_of_many_is_named_with_what_the_code_says() -> None:
    _, refusals = find_channel_sites(Picking().eval(), Samples.of(torch.randn(2, 8)))
    assert {r.where: r.reason.rpartition(": ")[2] for r in refusals if "eight" in r.reason} == {"layers.5#channels": "eight are wanted"}


def test_many_sites_take_few_runs() -> None:
    traced = Traced(Picking(depth=35, faulty=None).eval(), Samples.of(torch.randn(2, 8)))
    coupled = found(traced)
    copies = []
    before = removal.apply_structure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "apply_structure", lambda *given: copies.append(1) or before(*given))
        assert faults(traced, coupled).reasons == {}
    assert len(coupled) == 35 and len(copies) == 7


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 7, 20, 21])
def test_every_two_members_are_told_apart_in_both_orders(count: int) -> None:
    subsets = list(separating(count))
    assert {i for s in subsets for i in s} == set(range(count))
    assert all(any(a in s and b not in s for s in subsets) for a, b in itertools.permutations(range(count), 2))


def test_one_sample_is_taken_where_it_gives_what_it_gives_among_two() -> None:
    class Joined(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, -1)

    samples = Samples.of(torch.randn(2, 6))
    taken: Sequence[int] = [len(Traced(m, samples).few) for m in (nn.Linear(6, 3), Joined(), Two())]
    assert taken == [1, 2, 2]


class Partial(nn.Module):
    """A shortcut over the first channels only, whose number the block that reads them holds, as in ReXNet."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = 6
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.expand(x))
        return torch.cat([y[:, : self.in_channels] + x, y[:, self.in_channels :]], 1)


def test_a_number_that_a_reading_block_holds_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), Partial(), nn.Conv2d(10, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    sites, refusals = find_channel_sites(model, Samples.of(IMAGE))
    site = next((s for s in sites if s.id == "0#channels"), None)
    assert site is not None, refusals
    assert [(c.module, c.name, c.width) for c in site.counts] == [("1", "in_channels", 1)]
    pruned = apply_structure(model, keep_channels(site, (0, 1, 4)))
    assert pruned[1].in_channels == 3 and pruned[1].project[0].weight.shape[0] == 7
    torch.testing.assert_close(Program.export(pruned, Samples.of(IMAGE))(Samples.of(IMAGE)), pruned(IMAGE), rtol=1e-4, atol=1e-5)


def test_a_failing_trial_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A module made from a graph prints what it raises when it is called as itself."""

    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 4)

    with pytest.raises(RuntimeError):
        outputs_of(fx.symbolic_trace(Split()), Samples.of(torch.randn(2, 5)))
    assert capsys.readouterr().err == ""
