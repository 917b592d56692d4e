"""weight_only: any layer, any granularity, no data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.methods.weight_only import WeightOnly
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.entropy import coded_bytes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.up = nn.ConvTranspose1d(16, 12, 3)
        self.lstm = nn.LSTM(12, 8, batch_first=True)
        self.head = nn.Linear(8, 64)
        self.last = nn.Linear(64, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.up(self.table(tokens).transpose(1, 2)).transpose(1, 2)
        out: torch.Tensor = self.last(self.head(self.lstm(x)[0].mean(1)).relu())
        return out


@pytest.fixture(scope="module")
def net() -> tuple[Program, ProgramStatistics]:
    torch.manual_seed(0)
    samples = Samples.of(torch.randint(0, 30, (16, 7)))
    program = Program.export(Net().eval(), samples[:2])
    return program, ProgramStatistics(program, samples)


def rewrite(net: tuple[Program, Any], name: str, **options: Any) -> Encode:
    use = net[0].weights[name]
    (edit,) = WeightOnly(**options).rewrite(net[0], Site(id=name, kind="weight", op=use.op, shape=use.shape), net[1])
    assert isinstance(edit, Encode)
    return edit


@pytest.mark.parametrize(("name", "axis", "scales"), [("table.weight", 0, 30), ("up.weight", 1, 12), ("lstm.weight_ih_l0", 0, 32), ("head.weight", 0, 64)])
def test_every_kind_of_layer_is_stored_with_a_scale_per_output(net: Any, name: str, axis: int, scales: int) -> None:
    edit = rewrite((net[0], None), name)
    assert edit.execute == "float" and edit.format.axis == axis and edit.parts["scale"].shape == (scales,)  # type: ignore[attr-defined]
    weight = net[0].parameter(name).detach()
    assert float((edit.format.decode(edit.parts) - weight).abs().max()) < float(weight.abs().max()) / 100


def test_an_embedding_can_share_one_scale(net: Any) -> None:
    edit = rewrite(net, "table.weight", granularity="per_tensor")
    assert edit.parts["scale"].shape == ()
    assert edit.format.nbytes(edit.parts) == 30 * 16 + 4


def test_groups_of_inputs_have_scales_of_their_own_and_lose_less(net: Any) -> None:
    weight = net[0].parameter("last.weight").detach()
    errors = {}
    for group in (0, 32):
        edit = rewrite(net, "last.weight", bits=4, group=group)
        errors[group] = float((edit.format.decode(edit.parts) - weight).square().sum())
    assert edit.parts["scale"].shape == (6, 2)
    assert errors[32] < errors[0]


def test_searched_ranges_lose_no_more_than_the_full_range(net: Any) -> None:
    for bits in (2, 4, 8):
        errors = [
            float((e.format.decode(e.parts) - net[0].parameter("head.weight").detach()).square().sum())
            for e in (rewrite(net, "head.weight", bits=bits, weight_range=r) for r in ("mse", "minmax"))
        ]
        assert errors[0] <= errors[1] * (1 + 1e-5)


def test_candidates_fit_the_layer() -> None:
    def labels(op: Any, shape: tuple[int, ...]) -> list[str]:
        options = WeightOnly.candidates(Site(id="w", kind="weight", op=op, shape=shape))
        return [m.label for m in options if isinstance(m, WeightOnly) and not m.rate]

    assert labels("embedding", (30, 16)) == ["weight_only", "weight_only(granularity=per_tensor)", "weight_only(bits=4)"]
    assert labels("lstm", (32, 12)) == ["weight_only", "weight_only(bits=4)"]
    assert labels("linear", (8, 96)) == ["weight_only", "weight_only(bits=4)", "weight_only(bits=4, rounding=second_order)", "weight_only(bits=4, group=32)"]
    assert WeightOnly.candidates(Site(id="a#channels", kind="channels", op="channels", shape=(8,))) == ()


def test_a_group_that_does_not_divide_the_inputs_is_refused(net: Any) -> None:
    with pytest.raises(UnsupportedSite, match="group 48 needs a linear layer whose inputs are a multiple"):
        rewrite(net, "last.weight", group=48)
    with pytest.raises(UnsupportedSite, match="this is a embedding"):
        rewrite(net, "table.weight", group=16)


def test_second_order_without_data_is_refused(net: Any) -> None:
    with pytest.raises(UnsupportedSite, match="calibration samples"):
        rewrite((net[0], None), "last.weight", bits=4, rounding="second_order")


def test_a_group_of_one_scale_for_all_is_a_contradiction() -> None:
    with pytest.raises(UnsupportedFormat, match="a group cuts channels"):
        WeightOnly(granularity="per_tensor", group=32)


def test_a_weight_that_is_not_there_is_refused(net: Any) -> None:
    with pytest.raises(UnsupportedSite, match=r"gone\.weight"):
        WeightOnly().rewrite(net[0], Site(id="gone.weight", kind="weight", op="linear", shape=(2, 2)), None)


def test_a_rate_saves_bits_of_the_archive_and_none_of_the_file(net: Any) -> None:
    plain = rewrite(net, "head.weight")
    coarse = rewrite(net, "head.weight", rate=3.0)
    assert coarse.format.nbytes(coarse.parts) == plain.format.nbytes(plain.parts)
    assert coded_bytes(coarse.parts) < 0.7 * coded_bytes(plain.parts)


def test_a_rate_does_not_go_with_groups() -> None:
    with pytest.raises(UnsupportedFormat, match="one scale per channel"):
        WeightOnly(bits=8, group=32, rate=1.0)
