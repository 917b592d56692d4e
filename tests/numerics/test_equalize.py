"""Cross-layer equalization changes ranges and no outputs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slimline.numerics.equalize import equalization_scales, equalize


def ranges(weight_a: torch.Tensor, weight_b: torch.Tensor, groups: int) -> tuple[list[float], list[float]]:
    """Largest magnitude of every channel on both sides, one by one."""
    channels = len(weight_a)
    per, outs = channels // groups, len(weight_b) // groups
    made = [float(weight_a[c].abs().max()) for c in range(channels)]
    read = [max(float(weight_b[o, c % per].abs().max()) for o in range(c // per * outs, (c // per + 1) * outs)) for c in range(channels)]
    return made, read


@pytest.mark.parametrize(("groups", "out"), [(1, 5), (2, 6), (8, 8), (8, 16)])
def test_ranges_become_equal_and_outputs_stay(groups: int, out: int) -> None:
    first, bias = torch.randn(8, 3, 3, 3) * torch.logspace(-2, 1, 8)[:, None, None, None], torch.randn(8)
    second, x = torch.randn(out, 8 // groups, 3, 3), torch.randn(2, 3, 9, 9)
    made, read = ranges(first, second, groups)
    scales = equalization_scales(first, second, groups)
    torch.testing.assert_close(scales, torch.tensor([(m / r) ** 0.5 for m, r in zip(made, read, strict=True)]))
    new_first, new_bias, new_second = equalize(first, bias, second, scales, groups)
    for m, r, a, b in zip(made, read, *ranges(new_first, new_second, groups), strict=True):
        assert a == pytest.approx((m * r) ** 0.5, rel=1e-4) and b == pytest.approx((m * r) ** 0.5, rel=1e-4)
    before = F.conv2d(F.conv2d(x, first, bias).relu(), second, groups=groups)
    torch.testing.assert_close(F.conv2d(F.conv2d(x, new_first, new_bias).relu(), new_second, groups=groups), before, rtol=1e-3, atol=1e-4)


def test_linear_layers_are_equalized_the_same_way() -> None:
    first, second, x = torch.randn(6, 4), torch.randn(3, 6), torch.randn(5, 4)
    new_first, none, new_second = equalize(first, None, second, equalization_scales(first, second))
    assert none is None
    torch.testing.assert_close((x @ new_first.T).relu() @ new_second.T, (x @ first.T).relu() @ second.T, rtol=1e-4, atol=1e-5)


def test_equalizing_twice_changes_nothing_more() -> None:
    first, second = torch.randn(6, 4), torch.randn(3, 6)
    a, _, b = equalize(first, None, second, equalization_scales(first, second))
    torch.testing.assert_close(equalization_scales(a, b), torch.ones(6))


def test_dead_channels_stay_as_they_are() -> None:
    first, second = torch.randn(3, 4), torch.randn(2, 3)
    first[0], second[:, 1] = 0.0, 0.0
    assert equalization_scales(first, second)[:2].tolist() == [1.0, 1.0]


def test_layers_that_share_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="6 channels are made"):
        equalization_scales(torch.randn(6, 2), torch.randn(3, 5))
