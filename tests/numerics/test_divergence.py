from __future__ import annotations

import pytest
import torch

from slimline.numerics.divergence import distillation_loss, divergence, mean_divergence, own_divergence

A = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
SHIFTED = A + 3.0  # the same distribution over classes, other values


def test_class_scores_are_compared_by_kl() -> None:
    assert float(divergence(A, A, classes=True)) == pytest.approx(0, abs=1e-6)
    p, q = A.softmax(1), (2 * A).softmax(1)
    assert float(divergence(2 * A, A, classes=True)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_scores_of_pixels_lose_what_the_pixels_lose_as_samples() -> None:
    pixels, other = (t.reshape(5, 2, 2, 5).permute(0, 3, 1, 2) for t in (A, 2 * A))
    assert float(divergence(other, pixels, classes=True)) == pytest.approx(float(divergence(2 * A, A, classes=True)), rel=1e-5)


@pytest.mark.parametrize("shape", [(20, 5), (5, 4, 5), (5, 2, 2, 5)])
def test_values_are_compared_by_their_relative_squared_error(shape: tuple[int, ...]) -> None:
    x = A.reshape(shape)
    assert float(divergence(1.1 * x, x, classes=False)) == pytest.approx(0.01, rel=1e-4)
    assert float(distillation_loss((1.1 * x,), (x,), classes=False)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("measure", [divergence, distillation_loss])
def test_only_values_see_a_shift_of_all_scores(measure: object) -> None:
    assert callable(measure)
    assert float(measure(SHIFTED, A, classes=True)) == pytest.approx(0, abs=1e-5)
    assert float(measure(SHIFTED, A, classes=False)) > 1


def test_the_mean_is_over_floating_point_outputs() -> None:
    ids = torch.arange(20)
    assert float(mean_divergence((1.1 * A, ids, A), (A, ids, A), classes=False)) == pytest.approx(0.005, rel=1e-4)


def test_gradients_of_values_do_not_vanish_where_a_softmax_is_flat() -> None:
    """An embedding's elements are so small that its softmax is next to uniform, and a large one's so large that it is next to certain."""
    seen = {}
    for classes in (True, False):
        x = (100 * A).requires_grad_()
        own_divergence(x, torch.Generator().manual_seed(1), classes=classes).backward()
        assert x.grad is not None
        seen[classes] = float(x.grad.abs().mean())
    assert seen[True] < 1e-3 < seen[False]
