"""Costs and losses of choices that differ in one place are those that counting everything gives."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from slimline.core.budget import Budget
from slimline.core.formats import Affine
from slimline.core.plan import Decision, Fingerprint
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.methods.keep import Keep as KeepMethod
from slimline.model.program import Program
from slimline.model.sites import find_sites
from slimline.search.nearby import Nearby, pruned
from slimline.search.space import Choice, Corrections, Neighbours, Option, Place, Space, Timing, layers_of
from slimline.search.strategies.allocate import linearised, solve


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.two(self.one(x).relu())).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(), Block(), Block()), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def space() -> Space:
    torch.manual_seed(0)
    draw = random.Random(0)
    net, x = Net().eval(), Samples.of(torch.randn(2, 3, 8, 8))
    weights = Program.export(net, x).weights
    sites, _ = find_sites(net, x)
    assert {s.kind for s in sites} >= {"weight", "channels", "block", "input", "model"}
    channels = tuple(s for s in sites if s.kind == "channels")

    def options(site: Site) -> tuple[Option, ...]:
        taken = (Decision(site=site.id, method=KeepMethod()),)
        if site.kind == "weight":
            return tuple(
                Option(f"{bits}", taken, draw.random(), format=Affine(bits=bits), execute=how, coded=0.5) for bits in (8, 4) for how in ("integer", "float")
            )
        if site.kind == "channels":
            return tuple(Option(f"{n}", taken, draw.random(), channels=n) for n in (6, 4))
        if site.kind == "block":
            return (Option("dropped", taken, draw.random(), dropped=True),)
        if site.kind == "input":
            return (Option("small", taken, draw.random(), work=tuple((name, 0.25) for name in weights if name != "head.weight"), added=12),)
        first = next(s.id for s in sites if s.kind == "block")
        return (
            Option("half", taken, draw.random(), widths=((channels[0].id, 4),), drops=(first,)),
            Option("narrow", taken, draw.random(), widths=((channels[0].id, 4),)),
        )

    places = tuple(Place(s, (Option("keep"), *options(s))) for s in sites)
    blocks = [i for i, p in enumerate(places) if p.site.kind == "block"]
    timing = Timing({"float": dict.fromkeys(weights, 1.0), "integer": dict.fromkeys(weights, 0.4)}, {}, 0.1, edge=1e-5)
    return Space(
        Fingerprint(architecture="a", weights="w"), places, layers_of(weights, places), timing, 1_000, 50, neighbours=(Neighbours(blocks[0], blocks[1], 0.3),)
    )


def choices(space: Space, seed: int) -> Choice:
    draw = random.Random(seed)
    return tuple(draw.choice([0, draw.randrange(len(p.options))]) for p in space.places)


@pytest.mark.parametrize("seed", range(8))
def test_every_option_of_every_place(space: Space, seed: int) -> None:
    choice = choices(space, seed) if seed else space.nothing
    seen = {(space._form(key), space._beside(key[0], choice)): 0.3 for key in list(space._keys(choice))[: seed % 4]}
    corrections = Corrections({"size": 1.1, "latency": 0.9}, {"weight": 2.0, "block": 1.5}, seen)
    nearby = Nearby(space, choice, corrections)
    assert nearby.here == pytest.approx(space.costs(choice, corrections))
    for i, place in enumerate(space.places):
        for j in range(len(place.options)):
            other = nearby.other(i, j)
            assert nearby.costs(i, j) == pytest.approx(space.costs(other, corrections)), (place.site.id, j)
            assert nearby.loss(i, j) == pytest.approx(space.loss(other, corrections)), (place.site.id, j)


def test_only_layers_beside_a_place_are_counted_anew(space: Space) -> None:
    touched = {p.site.id: [space.layers[i].use.parameter for i in layers] for p, layers in zip(space.places, space.touched, strict=True)}
    assert touched["blocks.1.one.weight"] == ["blocks.0.two.weight", "blocks.1.one.weight", "blocks.1.two.weight"]
    assert touched["blocks.1.one#channels"] == ["blocks.1.one.weight", "blocks.1.two.weight"]
    assert touched["blocks.1#block"] == ["blocks.0.two.weight", "blocks.1.one.weight", "blocks.1.two.weight", "blocks.2.one.weight"]
    assert len(touched["#model"]) == len(space.layers)


def test_tables_are_differences_to_the_choice(space: Space) -> None:
    choice = choices(space, 3)
    tables = linearised(space, choice, Corrections())
    for i, place in enumerate(space.places):
        assert tables[i]["size"][choice[i]] == 0.0
        for j in range(len(place.options)):
            other = (*choice[:i], j, *choice[i + 1 :])
            assert tables[i]["size"][j] == pytest.approx(space.costs(other)["size"] - space.costs(choice)["size"], abs=1e-6)


def test_a_solution_keeps_the_level_and_the_limits_as_they_are_counted_in_full(space: Space) -> None:
    plain = replace(space, places=tuple(p if p.site.kind != "model" else replace(p, options=p.options[:1]) for p in space.places))
    budget = Budget(minimize="latency", size_bytes=3_000)
    choice = solve(plain, budget, 2.0, Corrections())
    assert choice is not None and plain.loss(choice) <= 2.002 and plain.costs(choice)["size"] <= 3_000


def test_an_option_is_beaten_only_by_what_may_stand_wherever_it_may(space: Space) -> None:
    """Factors that are smaller and lose less than codes leave the codes in: where channels go, or shapes are to stay, the codes are all there is."""
    where = next(i for i, p in enumerate(space.places) if p.site.kind == "weight")
    codes, better = Option("codes", loss=0.2, format=Affine(bits=4)), Option("better codes", loss=0.1, format=Affine(bits=4))
    factors = Option("factors", loss=0.05, format=Affine(bits=4), factors=((2, 2), (2, 2)))
    worse = replace(factors, label="worse factors", loss=0.3)
    groups = Option("groups", loss=0.06, format=Affine(bits=4, granularity="per_group", group=2))
    assert factors.whole and groups.whole and not better.whole

    def left(*options: Option) -> list[str]:
        place = replace(space.places[where], options=(Option("keep"), *options))
        return [o.label for o in pruned(replace(space, places=(*space.places[:where], place, *space.places[where + 1 :]))).places[where].options][1:]

    assert left(codes, better, factors, worse) == ["better codes", "factors"]
    assert left(codes, groups) == ["codes", "groups"]


def test_where_milliseconds_count_floats_stand_for_no_integers(space: Space) -> None:
    """At equal times and bytes the float one loses less; among integer layers it would cost conversions."""
    where = next(i for i, p in enumerate(space.places) if p.site.kind == "weight")
    integer, decoded = Option("integer", loss=0.2, format=Affine(), execute="integer"), Option("decoded", loss=0.1, format=Affine())
    places = tuple(replace(p, options=(p.options[0], integer, decoded)) if i == where else p for i, p in enumerate(space.places))
    weights = {layer.use.parameter: 1.0 for layer in space.layers}
    alike = replace(space, places=places, timing=Timing({"float": weights, "integer": weights}, {}, 0.1))
    assert integer in pruned(alike, counted=("size", "latency")).places[where].options
    assert integer not in pruned(alike, counted=("size",)).places[where].options
