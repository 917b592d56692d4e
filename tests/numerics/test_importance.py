"""Channel scores against slow, obvious references."""

from __future__ import annotations

import torch

from slimline.numerics.importance import fisher, magnitude, most_important, per_channel, second_order, taylor


def test_positions_are_summed_by_owner() -> None:
    values = torch.arange(14.0)
    outer, count, inner, start = 2, 3, 2, 2
    expected = [sum(float(values[start + (o * count + c) * inner + i]) for o in range(outer) for i in range(inner)) for c in range(count)]
    assert per_channel(values, (outer, count, inner), start).tolist() == expected


def test_magnitudes_are_norms_of_slices() -> None:
    w = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(magnitude(w, 1, 1), torch.stack([w[:, c].abs().sum() for c in range(4)]))
    torch.testing.assert_close(magnitude(w, 0, 2), torch.stack([w[c].square().sum() for c in range(3)]))


def test_taylor_and_fisher_average_over_batches() -> None:
    g = torch.tensor([[1.0, -2.0], [-3.0, 0.0]])
    assert taylor(g).tolist() == [2.0, 1.0]
    assert fisher(g).tolist() == [2.5, 1.0]


def test_second_order_is_the_error_left_after_the_best_repair() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw, dtype=torch.float64)
    w = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    got = second_order(w, x.T @ x / len(x), channels=3, ridge=1e-12)
    for c in range(3):
        stay = [i for i in range(6) if i // 2 != c]
        y = x @ w.T
        repaired = x[:, stay] @ torch.linalg.lstsq(x[:, stay], y).solution
        torch.testing.assert_close(got[c].double(), (y - repaired).square().sum() / len(x), rtol=1e-4, atol=1e-8)


def test_second_order_within_channels_ignores_the_others() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=draw, dtype=torch.float64)
    w = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    blocks = torch.stack([x[:, 2 * c : 2 * c + 2].T @ x[:, 2 * c : 2 * c + 2] / len(x) for c in range(3)])
    got = second_order(w, blocks, channels=3)
    for c in range(3):
        torch.testing.assert_close(got[c].double(), (x[:, 2 * c : 2 * c + 2] @ w[:, 2 * c : 2 * c + 2].T).square().sum() / len(x), rtol=1e-5, atol=1e-8)


def test_ties_go_to_the_lower_index() -> None:
    assert most_important(torch.tensor([2.0, 2.0, 2.0]), 2) == (0, 1)
