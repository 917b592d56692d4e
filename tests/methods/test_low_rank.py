"""low_rank: the same function at full rank, less error where inputs are known, and what it refuses."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Replace
from slimline.core.plan import Decision, Fingerprint, Plan
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.low_rank import LowRank, full_rank
from slimline.model.apply import apply_structure
from slimline.model.program import Program
from slimline.model.structure_statistics import StructureStatistics


def site_of(model: nn.Module, name: str) -> Site:
    weight = model.get_parameter(name)
    return Site(id=name, kind="weight", op="linear" if weight.ndim == 2 else "conv2d", shape=tuple(weight.shape))


def factored(model: nn.Module, name: str, statistics: StructureStatistics | None = None, **options: Any) -> nn.Module:
    edits = LowRank(**options).rewrite(model, site_of(model, name), statistics)
    assert [type(e) for e in edits] == [Replace]
    return apply_structure(model, edits)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": (2, 3), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
    "oblong": {"kernel_size": (3, 5), "padding": (0, 2), "stride": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflecting": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
}


@pytest.mark.parametrize("kind", ["spatial", "channel"])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_at_full_rank_is_the_same_function(options: dict[str, Any], kind: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, **options), nn.BatchNorm2d(6)).eval()
    x = torch.randn(2, 4, 11, 13)
    new = factored(model, "0.weight", rank=full_rank(tuple(model.get_parameter("0.weight").shape), kind), kind=kind)
    torch.testing.assert_close(new(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_becomes_two_of_which_the_second_has_the_bias(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(12, 9, bias=bias)).eval()
    new = factored(model, "0.weight", rank=9)
    assert repr(new[0][0]) == "Linear(in_features=12, out_features=9, bias=False)" and (new[0][1].bias is not None) == bias  # type: ignore[index]
    x = torch.randn(3, 12)
    torch.testing.assert_close(new(x), model(x), rtol=1e-4, atol=1e-5)


def smooth(count: int) -> torch.Tensor:
    """Images whose neighbours are alike."""
    return nn.functional.avg_pool2d(torch.randn(count, 4, 12, 12), 3, 1) * torch.tensor([0.3, 1.0, 2.0, 4.0])[:, None, None]


@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_known_inputs_make_the_outputs_closer(kind: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    statistics = StructureStatistics.collect(model, Samples.of(smooth(64)), None, seed=0, moments=True)
    x = smooth(32)
    errors = [float((factored(model, "0.weight", s, rank=4, kind=kind)[0](x) - model[0](x)).square().mean().detach()) for s in (None, statistics)]  # type: ignore[index, operator]
    assert errors[1] < 0.8 * errors[0]


def test_a_linear_layer_minds_its_inputs_too() -> None:
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.randn(200, 16) * torch.linspace(0.05, 3, 16)
    statistics = StructureStatistics.collect(model, Samples.of(x), None, seed=0, moments=True)
    errors = [float((factored(model, "0.weight", s, rank=4)[0](x) - model[0](x)).square().mean().detach()) for s in (None, statistics)]  # type: ignore[index, operator]
    assert errors[1] < 0.8 * errors[0]


def test_statistics_without_moments_of_the_layer_give_the_plain_factors() -> None:
    model = nn.Sequential(nn.Linear(8, 6)).eval()
    empty = StructureStatistics(MappingProxyType({}), MappingProxyType({}))
    plain, given = factored(model, "0.weight", rank=2), factored(model, "0.weight", empty, rank=2)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), given.state_dict().values(), strict=True))


@pytest.mark.parametrize(("op", "shape"), [("linear", (64, 256)), ("conv2d", (16, 16, 3, 3)), ("conv2d", (64, 32, 1, 1)), ("conv2d", (20, 12, 5, 5))])
def test_every_candidate_has_fewer_elements_and_says_how_many(op: Any, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(shape[1], shape[0]) if op == "linear" else nn.Conv2d(shape[1], shape[0], shape[2:]))
    found = LowRank.candidates(site_of(model, "0.weight"))
    assert found
    for method in found:
        assert isinstance(method, LowRank)
        new = apply_structure(model, method.rewrite(model, site_of(model, "0.weight"), None))
        count = sum(p.numel() for p in new.parameters() if p.ndim > 1)
        assert count == method.elements(shape) < math.prod(shape)


def test_depthwise_recurrent_and_embedding_layers_get_no_candidates() -> None:
    for op, shape in (("conv2d", (32, 1, 3, 3)), ("lstm", (64, 64)), ("embedding", (64, 64)), ("conv1d", (64, 64, 3))):
        assert LowRank.candidates(Site(id="w", kind="weight", op=op, shape=shape)) == ()  # type: ignore[arg-type]


def test_no_candidates_where_nothing_would_be_saved() -> None:
    assert LowRank.candidates(Site(id="w", kind="weight", op="linear", shape=(2, 2))) == ()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(12, 8), nn.Linear(8, 12)
        self.out.weight = self.table.weight


@pytest.mark.parametrize(
    ("model", "name", "options", "reason"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "0.weight", {"rank": 2, "kind": "channel"}, "2 groups"),
        (nn.Sequential(nn.Linear(8, 8)), "0.weight", {"rank": 9}, "at most rank 8"),
        (nn.Sequential(nn.Linear(8, 8)), "0.weight", {"rank": 2, "kind": "spatial"}, "does not go with Linear"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), "0.out_proj.weight", {"rank": 2}, "not to an nn.Linear"),
        (Tied(), "out.weight", {"rank": 2}, "tied to table.weight"),
        (nn.Linear(8, 8), "weight", {"rank": 2}, "inside the model"),
    ],
)
def test_what_cannot_be_factored_is_refused_with_its_reason(model: nn.Module, name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedSite, match=reason):
        LowRank(**options).rewrite(model, site_of(model, name), None)


def test_an_exported_program_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    with pytest.raises(UnsupportedSite, match=r"needs the nn\.Module, not a Program"):
        LowRank(rank=2).rewrite(Program.export(model, Samples.of(torch.zeros(2, 8))), site_of(model, "0.weight"), None)


def test_the_model_and_the_random_numbers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3))
    before, state = model[0].weight.clone(), torch.get_rng_state()
    LowRank(rank=2, kind="spatial").rewrite(model, site_of(model, "0.weight"), None)
    assert torch.equal(model[0].weight, before) and torch.equal(torch.get_rng_state(), state)


def test_new_layers_train_and_follow_the_old_ones_switch() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).train()
    new = factored(model, "0.weight", rank=2)
    assert all(m.training for m in new.modules()) and all(p.requires_grad for p in new.parameters())


def test_a_plan_keeps_rank_and_kind() -> None:
    plan = Plan(model=Fingerprint(architecture="a", weights="w"), decisions=(Decision(site="c.weight", method=LowRank(rank=6, kind="spatial")),))
    assert Plan.model_validate_json(plan.model_dump_json()).at("c.weight") == (LowRank(rank=6, kind="spatial"),)
