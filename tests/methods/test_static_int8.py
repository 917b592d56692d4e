"""static_int8 on exported programs: what it stores, which grids it sets, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode, QuantizeValue, SetParameter
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.methods.static_int8 import StaticInt8
from slimline.model.integer import output_shift
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics
from slimline.numerics.entropy import coded_bytes
from slimline.numerics.hessian import output_error
from slimline.numerics.rate import significant


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def net() -> tuple[Program, ProgramStatistics]:
    torch.manual_seed(1)
    samples = Samples.of(nn.functional.avg_pool2d(torch.randn(32, 3, 12, 12) * 8, 5, 1))  # smooth: on noise, nearest rounding is the best there is
    model = Net().eval()
    with torch.no_grad():
        model.body[0].weight *= 6  # so that the relu6 clips
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def site_of(program: Program, name: str) -> Site:
    use = program.weights[name]
    return Site(id=name, kind="weight", op=use.op, shape=use.shape)


def rewrite(net: tuple[Program, Any], name: str, **options: Any) -> tuple[Encode, list[QuantizeValue], list[SetParameter]]:
    edits = StaticInt8(**options).rewrite(net[0], site_of(net[0], name), net[1])
    encodes = [e for e in edits if isinstance(e, Encode)]
    assert len(encodes) == 1
    return encodes[0], [e for e in edits if isinstance(e, QuantizeValue)], [e for e in edits if isinstance(e, SetParameter)]


def test_a_layer_gets_integers_and_grids_for_both_sides(net: Any) -> None:
    encode, grids, biases = rewrite(net, "body.4.weight")
    use = net[0].weights["body.4.weight"]
    assert encode.execute == "integer" and encode.format == Affine(bits=8, axis=0)
    assert [g.value for g in grids] == [use.input, use.output]
    assert all(g.bits == 8 and not g.signed for g in grids)
    assert [b.parameter for b in biases] == ["body.4.bias"]


def test_the_last_output_stays_float(net: Any) -> None:
    _, grids, _ = rewrite(net, "head.weight")
    assert [g.value for g in grids] == [net[0].weights["head.weight"].input]


@pytest.mark.parametrize("range_", ["minmax", "percentile", "mse"])
def test_activations_after_a_relu_start_at_zero_and_relu6_ends_at_six(net: Any, range_: str) -> None:
    for name in ("body.0.weight", "body.2.weight"):
        output = rewrite(net, name, range=range_)[1][1]
        assert output.zero_point == 0
    assert rewrite(net, "body.0.weight", range=range_)[1][1].scale * 255 <= 6.0 + 1e-6


def test_four_and_two_bits_are_stored_but_run_as_integers(net: Any) -> None:
    for bits in (4, 2):
        encode, _, _ = rewrite(net, "body.4.weight", bits=bits)
        assert encode.execute == "integer" and int(encode.parts["values"].abs().max()) <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name", ["body.0.weight", "body.2.weight", "body.4.weight", "head.weight"])
@pytest.mark.parametrize("bits", [2, 4])
def test_second_order_rounding_loses_less_output_than_nearest(net: Any, name: str, bits: int) -> None:
    moment, weight = net[1].moment(name), net[0].parameter(name).detach()
    errors = []
    for rounding in ("nearest", "second_order"):
        encode, _, _ = rewrite(net, name, bits=bits, rounding=rounding)
        delta = (weight - encode.format.decode(encode.parts)).flatten(1)
        groups = moment if moment.ndim == 3 else moment[None]
        errors.append(sum(float(output_error(d, m)) for d, m in zip(delta.chunk(len(groups)), groups, strict=True)))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", ["body.0.weight", "body.2.weight", "body.4.weight", "head.weight"])
def test_bias_correction_takes_the_mean_error_of_every_output_away(net: Any, name: str) -> None:
    program, statistics = net
    encode, _, (correction,) = rewrite(net, name, bits=2)
    rows, weight, bias = statistics.rows(name), program.parameter(name).detach().flatten(1), program.parameter(program.weights[name].bias).detach()
    rows = rows if rows.ndim == 3 else rows[None]
    coarse = encode.format.decode(encode.parts).flatten(1)
    wanted = torch.cat([(r @ w.T).mean(0) for r, w in zip(rows, weight.chunk(len(rows)), strict=True)]) + bias
    found = torch.cat([(r @ w.T).mean(0) for r, w in zip(rows, coarse.chunk(len(rows)), strict=True)]) + correction.value
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_without_correction_the_bias_is_left_alone(net: Any) -> None:
    assert rewrite(net, "body.4.weight", correct_bias=False)[2] == []


def test_output_shift_counts_each_group_with_its_own_inputs() -> None:
    delta, mean = torch.randn(6, 2, 3), torch.randn(3, 6)
    slow = [sum(float(delta[o].flatten()[i] * mean[o // 2][i]) for i in range(6)) for o in range(6)]
    torch.testing.assert_close(output_shift(delta, mean), torch.tensor(slow), rtol=1e-4, atol=1e-5)


def test_the_program_is_only_read(net: Any) -> None:
    before = {k: v.clone() for k, v in net[0].parameters().items()}
    rewrite(net, "body.0.weight", bits=2, rounding="second_order")
    assert all(torch.equal(v, before[k]) for k, v in net[0].parameters().items())


def test_candidates_fit_the_layer() -> None:
    def bits(op: Any, shape: tuple[int, ...]) -> list[int]:
        return sorted({m.bits for m in StaticInt8.candidates(Site(id="w", kind="weight", op=op, shape=shape)) if isinstance(m, StaticInt8)})

    assert bits("conv2d", (64, 64, 3, 3)) == [2, 4, 8]
    assert bits("linear", (10, 32)) == [4, 8]
    assert bits("conv2d", (960, 1, 3, 3)) == [4, 8]  # depthwise
    for op in ("lstm", "gru", "embedding", "conv_transpose2d"):
        assert bits(op, (64, 64)) == []


def test_where_kernels_saturate_8_bit_weights_leave_one_free(net: Any) -> None:
    offered = [m.reduced() for m in StaticInt8.candidates(Site(id="w", kind="weight", op="conv2d", shape=(64, 64, 3, 3)))]
    assert {(m.bits, bool(m.rate), m.reduce_range) for m in offered if isinstance(m, StaticInt8)} == {
        (8, False, True), (8, True, True), (4, False, False), (2, False, False),
    }  # fmt: skip
    for method in offered:
        assert isinstance(method, StaticInt8)
        (encode,) = [e for e in rewrite(net, "body.4.weight", **method.model_dump()) if isinstance(e, Encode)]
        parts = encode.format.integers(encode.parts)
        assert int(parts["values"].abs().max()) <= 64  # 255 * 64 * 2 fits 16 bits


def test_where_no_moments_can_be_had_only_nearest_rounding_is_offered() -> None:
    for op, shape in (("conv3d", (8, 8, 3, 3, 3)), ("linear", (10, 25_088))):
        found = StaticInt8.candidates(Site(id="w", kind="weight", op=op, shape=shape))  # type: ignore[arg-type]
        assert found and all(isinstance(m, StaticInt8) and m.rounding == "nearest" for m in found)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 20)
        self.out.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(self.lstm(self.table(tokens))[0])
        return out


@pytest.fixture(scope="module")
def words() -> tuple[Program, ProgramStatistics]:
    samples = Samples.of(torch.randint(0, 20, (8, 5)))
    program = Program.export(Words().eval(), samples[:2])
    return program, ProgramStatistics(program, samples)


def test_recurrent_and_embedding_layers_are_refused_by_name(words: Any) -> None:
    with pytest.raises(UnsupportedSite, match=r"lstm\.weight_hh_l0: lstm has no static integer kernel"):
        rewrite(words, "lstm.weight_hh_l0")
    with pytest.raises(UnsupportedSite, match="embedding has no static integer kernel"):
        rewrite(words, "table.weight")


def test_without_calibration_it_is_refused(net: Any) -> None:
    with pytest.raises(UnsupportedSite, match="calibration samples"):
        rewrite((net[0], None), "head.weight")


def test_second_order_without_moments_is_refused_not_replaced(net: Any) -> None:
    class Blind:
        def histogram(self, value: str) -> Any:
            return net[1].histogram(value)

        def moment(self, parameter: str) -> None:
            return None

    with pytest.raises(UnsupportedSite, match="no second moments"):
        rewrite((net[0], Blind()), "head.weight", rounding="second_order")


def test_a_rate_keeps_the_format_and_the_grids_and_codes_in_fewer_bits(net: Any) -> None:
    plain, grids, _ = rewrite(net, "body.4.weight")
    coarse, same, shifts = rewrite(net, "body.4.weight", rate=3.0, rounding="second_order")
    assert coarse.format == plain.format
    assert grids == same or [(g.value, g.scale) for g in grids] == [(g.value, g.scale) for g in same]
    assert coded_bytes(coarse.parts) < 0.75 * coded_bytes(plain.parts)
    assert all(torch.equal(significant(s.value, 8), s.value) for s in shifts)  # what the archive need not spend bits on


def test_rates_are_offered_at_8_bits_only(net: Any) -> None:
    offered = [m for m in StaticInt8.candidates(site_of(net[0], "body.4.weight")) if isinstance(m, StaticInt8) and m.rate]
    assert {m.rate for m in offered} == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert {m.bits for m in offered} == {8}
