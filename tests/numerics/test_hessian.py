"""Second-order rounding against the plain algorithm that it speeds up, and against nearest rounding."""

from __future__ import annotations

import itertools

import pytest
import torch

from slimline.core.formats import Affine
from slimline.errors import UnsupportedFormat
from slimline.numerics.hessian import DAMPING, compensate, descend, output_error, round_second_order, saliency
from slimline.numerics.rounding import SHARES, encode


def correlated(n: int, rows: int = 400) -> torch.Tensor:
    """Inputs ``[rows, n]`` whose neighbours go together, as those of a convolution do, with some louder than others."""
    mix = torch.eye(n) + 0.8 * torch.diag(torch.ones(n - 1), 1) + 0.5 * torch.diag(torch.ones(n - 2), 2)
    return torch.randn(rows, n) @ mix * torch.linspace(0.3, 2.0, n)


def optimal_brain_quantizer(weight: torch.Tensor, moment: torch.Tensor, scale: float, limit: int) -> torch.Tensor:
    """GPTQ's equations 2 and 3 literally: round one column, move the others, invert the smaller matrix anew."""
    n = weight.shape[1]
    h = moment.double() + DAMPING * moment.diagonal().mean().double() * torch.eye(n, dtype=torch.float64)
    w, q = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for i in range(n):
        inverse = torch.linalg.inv(h[i:, i:])
        q[:, i] = (w[:, i] / scale).round().clamp(-limit, limit)
        error = (w[:, i] - scale * q[:, i]) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0]
    return q.to(torch.int8)


@pytest.mark.parametrize("n", [5, 140])
def test_it_is_the_plain_algorithm_column_by_column(n: int) -> None:
    x, weight = correlated(n), torch.randn(4, n)
    moment = x.T @ x / len(x)
    fast = round_second_order(weight, moment, torch.full((1, 1), 0.25), 7, order="columns")
    # Blocks of 128 columns and one Cholesky factor give the same numbers; a value at .5 may fall either way.
    assert (fast != optimal_brain_quantizer(weight, moment, 0.25, 7)).float().mean() < 0.005


def test_by_energy_is_by_columns_after_sorting() -> None:
    x, weight = correlated(12), torch.randn(3, 12)
    moment = x.T @ x / len(x)
    order = moment.diagonal().argsort(descending=True)
    sorted_first = round_second_order(weight[:, order], moment[order][:, order], torch.full((1, 1), 0.3), 7, order="columns")
    assert torch.equal(round_second_order(weight, moment, torch.full((1, 1), 0.3), 7)[:, order], sorted_first)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_it_beats_nearest_rounding_on_the_outputs(bits: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = correlated(48), torch.randn(16, 48)
    moment = x.T @ x / len(x)
    format = Affine(bits=bits)  # type: ignore[arg-type]
    scale = format.encode(weight)["scale"]
    nearest = format.decode(format.quantize(weight, scale))
    second = format.decode({"values": round_second_order(weight, moment, scale[:, None], format.limit), "scale": scale})
    assert ((second - weight) @ x.T).square().sum() < 0.7 * ((nearest - weight) @ x.T).square().sum()


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    x, weight = correlated(6), torch.randn(1, 6)
    moment, scale = x.T @ x / len(x), 0.4
    floors = (weight / scale).floor()
    errors = [float(output_error(scale * (floors + torch.tensor([bits])) - weight, moment)) for bits in itertools.product((0.0, 1.0), repeat=6)]
    found = scale * round_second_order(weight, moment, torch.full((1, 1), scale), 127).float() - weight
    nearest = scale * (weight / scale).round() - weight
    assert float(output_error(found, moment)) <= float(output_error(nearest, moment))
    assert float(output_error(found, moment)) <= sorted(errors)[6]  # of 64


def test_uncorrelated_inputs_give_nearest_rounding() -> None:
    weight = torch.randn(5, 9)
    found = round_second_order(weight, torch.eye(9), torch.full((1, 1), 0.2), 127)
    assert torch.equal(found, (weight / 0.2).round().to(torch.int8))


def test_output_error_is_the_mean_square_of_what_changes() -> None:
    x, delta = torch.randn(300, 6), torch.randn(4, 6)
    moment = x.T @ x / len(x)
    assert float(output_error(delta, moment)) == pytest.approx(float((x @ delta.T).square().sum(1).mean()), rel=1e-4)


def test_inputs_that_are_always_zero_or_copies_do_no_harm() -> None:
    x = torch.randn(100, 4)
    x = torch.cat((x, x[:, :2], torch.zeros(100, 2)), 1)
    found = round_second_order(torch.randn(3, 8), x.T @ x / len(x), torch.full((1, 1), 0.1), 127)
    assert found.dtype == torch.int8 and int(found.abs().max()) < 127
    assert round_second_order(torch.randn(3, 8), torch.zeros(8, 8), torch.full((1, 1), 0.1), 7).shape == (3, 8)


def test_grouped_convolutions_are_rounded_group_by_group() -> None:
    weight = torch.randn(6, 2, 3, 3)
    moments = torch.stack([m.T @ m / 400 for m in (correlated(18), correlated(18))])
    format = Affine(bits=4)
    parts = encode(weight, format, "second_order", moments)
    for g in (0, 1):
        alone = encode(weight[3 * g : 3 * g + 3], format, "second_order", moments[g])
        assert torch.equal(parts["values"][3 * g : 3 * g + 3], alone["values"])
        torch.testing.assert_close(parts["scale"][3 * g : 3 * g + 3], alone["scale"])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_searched_ranges_lose_no_more_output_than_the_full_range(bits: int, granularity: str) -> None:
    x, weight = correlated(16), torch.randn(6, 16) ** 3
    moment = x.T @ x / len(x)
    format = Affine(bits=bits, granularity=granularity, group=8 if granularity == "per_group" else 0)  # type: ignore[arg-type]
    searched, full = (encode(weight, format, "second_order", moment, r) for r in ("mse", "minmax"))
    errors = [((format.decode(p) - weight) @ x.T).square().sum(1) for p in (searched, full)]
    assert searched["scale"].shape == format.encode(weight)["scale"].shape
    if granularity == "per_tensor":
        assert float(errors[0].sum()) <= float(errors[1].sum()) * (1 + 1e-4)
    else:
        assert bool((errors[0] <= errors[1] * (1 + 1e-4)).all())  # output by output


def test_the_chosen_share_is_the_best_of_trying_each_alone() -> None:
    x, weight = correlated(16), torch.randn(3, 16) ** 3
    moment, format = x.T @ x / len(x), Affine(bits=2)
    scale = format.encode(weight)["scale"]
    found = output_error_by_row(format.decode(encode(weight, format, "second_order", moment)) - weight, moment)
    alone = []
    for share in SHARES[2]:
        values = round_second_order(weight, moment, scale[:, None] * share, format.limit)
        alone.append(output_error_by_row(values * scale[:, None] * share - weight, moment))
    torch.testing.assert_close(found, torch.stack(alone).amin(0), rtol=1e-4, atol=1e-5)


def output_error_by_row(delta: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    return torch.stack([output_error(row[None], moment) for row in delta])


def test_second_order_without_moments_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="second moments"):
        encode(torch.randn(2, 3), Affine(), "second_order", None)
    with pytest.raises(UnsupportedFormat, match="dimension 0"):
        encode(torch.randn(2, 3), Affine(axis=1), "second_order", torch.eye(3))


def test_compensation_beats_zeroing_and_keeps_the_mask() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(500, 40, generator=draw) @ torch.randn(40, 40, generator=draw)
    moment, weight = x.T @ x / 500, torch.randn(12, 40, generator=draw)
    mask = torch.rand(12, 40, generator=draw) < 0.5
    moved = compensate(weight, moment, mask)
    assert torch.equal(moved != 0, mask)
    assert output_error(moved - weight, moment) < 0.5 * output_error(weight * mask - weight, moment)


def test_saliency_is_the_error_that_is_left_when_the_others_make_up() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=draw) @ torch.randn(6, 6, generator=draw)
    moment, weight = (x.T @ x / 400).double(), torch.randn(1, 6, generator=draw).double()
    scores = saliency(weight, moment)[0]
    moment = moment + DAMPING * moment.diagonal().mean() * torch.eye(6)
    for j in range(6):
        others = [i for i in range(6) if i != j]
        delta = torch.zeros(1, 6, dtype=torch.float64)
        delta[0, j] = -weight[0, j]
        delta[0, others] = torch.linalg.solve(moment[others][:, others], moment[others, j] * weight[0, j])
        assert float(scores[j]) == pytest.approx(float(output_error(delta, moment)), rel=1e-3)


def test_rounding_under_a_mask_leaves_zeros_and_beats_rounding_after_the_fact() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(500, 32, generator=draw) @ torch.randn(32, 32, generator=draw)
    moment, weight = x.T @ x / 500, torch.randn(8, 32, generator=draw)
    mask, scale = torch.rand(8, 32, generator=draw) < 0.6, torch.full((8, 1), 0.4)
    q = round_second_order(weight, moment, scale, 7, mask=mask)
    assert not q[~mask].any()
    late = round_second_order(weight, moment, scale, 7) * mask
    assert output_error(q * scale - weight, moment) < output_error(late * scale - weight, moment)


def test_descent_ends_where_no_single_change_helps_and_below_the_sweep() -> None:
    torch.manual_seed(0)
    moment = (x := correlated(24)).T.double() @ x.double() / len(x)
    weight, scale = torch.randn(40, 24), torch.full((40, 1), 0.9)
    start = round_second_order(weight, moment, scale, 1)
    found = descend(weight, moment, scale, 1, start)
    before, after = (float(output_error(q * scale - weight, moment)) for q in (start, found))
    assert after < before
    for row in range(40):
        for column in range(24):
            for step in (-1, 1):
                other = found.clone()
                other[row, column] = (other[row, column] + step).clamp(-1, 1)
                assert float(output_error(other * scale - weight, moment)) >= after - 1e-9


def test_descent_leaves_inputs_that_are_always_zero_alone() -> None:
    moment = torch.diag(torch.tensor([1.0, 0.0]))
    assert descend(torch.tensor([[2.2, 5.0]]), moment, torch.ones(1, 1), 7, torch.tensor([[0, 3]], dtype=torch.int8)).tolist() == [[2, 3]]
