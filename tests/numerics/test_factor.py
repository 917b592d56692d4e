"""Low-rank factors: optimal where theory says so, and the same convolution at full rank."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slimline.numerics.factor import channel, spatial, svd, svd_error, weighted_svd
from slimline.numerics.hessian import output_error


def inputs(n: int) -> torch.Tensor:
    """``[500, n]``, correlated and of uneven loudness."""
    return torch.randn(500, n) @ (torch.eye(n) + 0.7 * torch.diag(torch.ones(n - 1), 1)) * torch.linspace(0.2, 3.0, n)


def moment_of(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The one kernel ``[out, in, kh, kw]`` that two convolutions in a row amount to."""
    return torch.einsum("orvx,riyw->oiyx" if first.shape[3] == 1 else "orvx,riyw->oiyw", second, first)


def test_svd_error_is_the_eckart_young_tail() -> None:
    weight = torch.randn(9, 14)
    for rank in (1, 4, 8):
        left, right = svd(weight, rank)
        assert left.shape == (9, rank) and right.shape == (rank, 14)
        assert float((weight - left @ right).square().sum() / weight.square().sum()) == pytest.approx(svd_error(weight, rank), rel=1e-4)
    assert svd_error(weight, 9) == pytest.approx(0.0, abs=1e-12)


def test_factors_are_balanced() -> None:
    left, right = svd(torch.randn(9, 14), 4)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_the_weighted_error_is_the_tail_of_the_whitened_weight() -> None:
    weight, moment = torch.randn(8, 12), moment_of(inputs(12))
    root = torch.linalg.cholesky(moment.double())
    for rank in (1, 3, 7):
        left, right = weighted_svd(weight, moment, rank)
        tail = torch.linalg.svdvals(weight.double() @ root)[rank:].square().sum()  # no matrix of this rank does better
        assert float(output_error(weight - left @ right, moment)) == pytest.approx(float(tail), rel=1e-3)


def test_minding_the_inputs_beats_the_plain_svd_on_the_outputs() -> None:
    weight, x = torch.randn(10, 20), inputs(20)
    plain, aware = svd(weight, 4), weighted_svd(weight, moment_of(x), 4)
    errors = [float(((weight - left @ right) @ x.T).square().sum()) for left, right in (plain, aware)]
    assert errors[1] < 0.8 * errors[0]


def test_diagonal_blocks_are_the_moment_with_zeros_elsewhere() -> None:
    weight = torch.randn(5, 12)
    blocks = torch.stack([moment_of(inputs(4)) for _ in range(3)])
    found, expected = weighted_svd(weight, blocks, 2), weighted_svd(weight, torch.block_diag(*blocks), 2)
    torch.testing.assert_close(found[0] @ found[1], expected[0] @ expected[1], rtol=1e-3, atol=1e-4)


def test_inputs_that_never_vary_are_survived() -> None:
    x = torch.cat((inputs(5), torch.zeros(500, 3)), 1)
    left, right = weighted_svd(torch.randn(6, 8), moment_of(x), 2)
    assert bool(left.isfinite().all() and right.isfinite().all())
    assert all(bool(f.isfinite().all()) for f in weighted_svd(torch.randn(6, 8), torch.zeros(8, 8), 2))


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize(("decompose", "full"), [(spatial, 10), (channel, 6)])
def test_at_full_rank_two_convolutions_give_the_same_outputs(decompose, full, aware) -> None:  # type: ignore[no-untyped-def]
    weight, x = torch.randn(6, 5, 2, 3), torch.randn(2, 5, 8, 9)
    columns = F.unfold(x, (2, 3)).transpose(1, 2).flatten(0, 1)
    first, second = decompose(weight, full, moment_of(columns) if aware else None)
    torch.testing.assert_close(F.conv2d(F.conv2d(x, first), second), F.conv2d(x, weight), rtol=1e-3, atol=1e-3)


def test_spatial_without_moments_is_the_nearest_separable_pair() -> None:
    weight = torch.randn(6, 5, 3, 3)
    first, second = spatial(weight, 4)
    assert first.shape == (4, 5, 3, 1) and second.shape == (6, 4, 1, 3)
    tail = svd_error(weight.permute(0, 3, 1, 2).reshape(18, 15), 4)
    assert float((joined(first, second) - weight).square().sum() / weight.square().sum()) == pytest.approx(tail, rel=1e-4)


def test_channel_error_is_the_tail_of_the_flat_weight() -> None:
    weight = torch.randn(6, 5, 3, 3)
    first, second = channel(weight, 3)
    assert first.shape == (3, 5, 3, 3) and second.shape == (6, 3, 1, 1)
    assert float((joined(first, second) - weight).square().sum() / weight.square().sum()) == pytest.approx(svd_error(weight.flatten(1), 3), rel=1e-4)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("decompose", [spatial, channel])
def test_convolution_factors_that_mind_the_inputs_lose_less_output(decompose, blocks) -> None:  # type: ignore[no-untyped-def]
    weight = torch.randn(8, 4, 3, 3)
    x = F.avg_pool2d(torch.randn(8, 4, 20, 20), 3, 1) * torch.tensor([0.3, 1.0, 2.0, 4.0])[:, None, None]  # smooth, as images are
    columns = F.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    moment = moment_of(columns)
    given = torch.stack([moment[9 * c : 9 * c + 9, 9 * c : 9 * c + 9] for c in range(4)]) if blocks else moment
    errors = [
        float((F.conv2d(F.conv2d(x, first), second) - F.conv2d(x, weight)).square().mean())
        for first, second in (decompose(weight, 4), decompose(weight, 4, given))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_the_horizontal_factor_is_the_least_squares_solution() -> None:
    weight, x = torch.randn(7, 3, 3, 3), torch.randn(4, 3, 10, 10)
    columns = F.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    first, second = spatial(weight, 2, moment_of(columns))
    features = F.unfold(F.conv2d(x, first), (1, 3)).transpose(1, 2).flatten(0, 1)  # what the second convolution reads
    wanted = F.conv2d(x, weight).permute(0, 2, 3, 1).reshape(-1, 7)
    best = torch.linalg.lstsq(features, wanted).solution.T.reshape(7, 2, 1, 3)
    torch.testing.assert_close(second, best, rtol=1e-2, atol=1e-3)  # a ridge of 1e-4
