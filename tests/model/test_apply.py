"""Structural edits happen on a copy and stay consistent."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from slimline.core.edits import Keep, Replace, SetAttribute
from slimline.core.site import Member
from slimline.errors import UnsupportedSite
from slimline.model.apply import apply_structure, replaced


def digest(model: nn.Module) -> str:
    text = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        text.update(name.encode() + value.numpy().tobytes())
    return text.hexdigest()


def keep(parameter: str, dim: int, count: int, *index: int, outer: int = 1, inner: int = 1, start: int = 0) -> Keep:
    return Keep(Member(parameter=parameter, dim=dim, view=(outer, count, inner), start=start), index)


def test_the_original_is_untouched() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = digest(net)
    edits = [keep(p, 0, 4, 1, 2) for p in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")]
    pruned = apply_structure(net, [*edits, Replace("2", nn.Identity()), SetAttribute("1", "eps", 0.5)])
    assert digest(net) == before
    assert (pruned[0].out_channels, pruned[1].num_features, pruned[1].eps) == (2, 2, 0.5)
    torch.testing.assert_close(pruned[0].weight, net[0].weight[1:3])
    torch.testing.assert_close(pruned[1].running_var, net[1].running_var[1:3])


def test_edits_on_both_dimensions_of_a_weight_combine() -> None:
    net = nn.Sequential(nn.Linear(4, 6))
    pruned = apply_structure(net, [keep("0.weight", 0, 6, 0, 5), keep("0.bias", 0, 6, 0, 5), keep("0.weight", 1, 2, 1, inner=2)])
    torch.testing.assert_close(pruned[0].weight, net[0].weight[[0, 5]][:, [2, 3]])
    assert (pruned[0].in_features, pruned[0].out_features) == (2, 2)


def test_edits_on_two_parts_of_one_dimension_combine() -> None:
    net = nn.Sequential(nn.Linear(5, 1))
    pruned = apply_structure(net, [keep("0.weight", 1, 2, 0), keep("0.weight", 1, 3, 1, 2, start=2)])
    torch.testing.assert_close(pruned[0].weight, net[0].weight[:, [0, 3, 4]])


def test_tied_weights_stay_tied() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    net["head"].weight = net["embedding"].weight
    pruned = apply_structure(net, [keep("embedding.weight", 1, 4, 0, 3)])
    assert pruned["head"].weight is pruned["embedding"].weight
    assert (pruned["embedding"].embedding_dim, pruned["head"].in_features) == (2, 2)


def test_a_depthwise_layer_loses_whole_groups() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4))
    pruned = apply_structure(net, [keep("0.weight", 0, 4, 1, 3, inner=2), keep("0.bias", 0, 4, 1, 3, inner=2)])
    assert (pruned[0].groups, pruned[0].in_channels, pruned[0].out_channels) == (2, 2, 4)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(pruned(x[:, [1, 3]]), net(x)[:, [2, 3, 6, 7]])


def test_a_grouped_layer_keeps_its_groups() -> None:
    net = nn.Sequential(nn.Conv2d(8, 6, 1, groups=2))
    pruned = apply_structure(net, [keep("0.weight", 1, 4, 0, 2), keep("0.weight", 0, 3, 0, 1, outer=2), keep("0.bias", 0, 3, 0, 1, outer=2)])
    assert (pruned[0].groups, pruned[0].in_channels, pruned[0].out_channels) == (2, 4, 4)
    assert pruned(torch.zeros(1, 4, 3, 3)).shape == (1, 4, 3, 3)


def test_modes_and_gradients_are_kept() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout()).eval()
    net[0].weight.requires_grad_(False)
    pruned = apply_structure(net, [keep("0.weight", 0, 4, 0), keep("0.bias", 0, 4, 0)])
    assert not pruned.training and not pruned[0].weight.requires_grad and pruned[0].bias.requires_grad


def test_what_was_decided_inside_a_dropped_module_goes_with_it() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 1))
    pruned = apply_structure(net, [keep("0.0.weight", 0, 4, 0), Replace("0", nn.Identity()), SetAttribute("0.0", "x", 1)])
    assert isinstance(pruned[0], nn.Identity)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (keep("0.nothing", 0, 4, 0), "no parameter"),
        (keep("1.weight", 0, 4, 0), "no module"),
        (keep("0.weight", 0, 9, 0), "does not fit"),
        (keep("0.weight", 0, 4), "at least one"),
        (keep("0.weight", 0, 4, 2, 1), "rising"),
        (Replace("", nn.Identity()), "whole model"),
        (Replace("7", nn.Identity()), "no module"),
    ],
)
def test_what_cannot_be_meant_is_refused(edit: Keep | Replace, message: str) -> None:
    with pytest.raises(UnsupportedSite, match=message):
        apply_structure(nn.Sequential(nn.Linear(2, 4)), [edit])


def test_modules_are_replaced_for_a_moment_whatever_happens_meanwhile() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    before = [*net.modules()]

    def fail() -> None:
        with replaced(net, [Replace("0", nn.Identity()), Replace("1.0", nn.Sigmoid())]) as other:
            assert other is net and [*net.modules()] != before
            raise RuntimeError("meanwhile")

    with pytest.raises(RuntimeError, match="meanwhile"):
        fail()
    assert [*net.modules()] == before
    with pytest.raises(UnsupportedSite, match="whole model"), replaced(net, [Replace("0", nn.Identity()), Replace("", nn.Identity())]):
        pass
    assert [*net.modules()] == before
