from __future__ import annotations

import pytest
import torch

from slimline.numerics.divergence import divergence

A = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))


def test_divergence_is_kl_for_class_scores_and_relative_error_else() -> None:
    assert float(divergence(A, A)) == pytest.approx(0, abs=1e-6)
    p, q = A.softmax(1), (2 * A).softmax(1)
    assert float(divergence(2 * A, A)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    x = A.reshape(5, 4, 5)
    assert float(divergence(1.1 * x, x)) == pytest.approx(0.01, rel=1e-4)
