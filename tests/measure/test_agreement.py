from __future__ import annotations

import pytest
import torch

from slimline.measure.agreement import agreement

MAKE = torch.Generator().manual_seed(0)
A = torch.randn(20, 5, generator=MAKE)


def test_equal_outputs_agree_entirely() -> None:
    found = agreement([A, A[:, 0]], [A, A[:, 0]])
    assert (found.top1, found.max_abs) == (1.0, 0.0)
    assert found.cosine == pytest.approx(1)


def test_top1_is_the_share_of_equal_winners() -> None:
    b = A.clone()
    b[:5] = -b[:5]
    expected = sum(x.index(max(x)) == y.index(max(y)) for x, y in zip(A.tolist(), b.tolist(), strict=True)) / 20
    assert agreement([A], [b]).top1 == pytest.approx(expected)
    assert agreement([A], [b]).cosine == pytest.approx(0.5, abs=1e-6)


def test_top1_is_for_class_scores_only() -> None:
    assert agreement([A[:, :1]], [A[:, :1]]).top1 is None
    assert agreement([A.reshape(5, 4, 5)], [A.reshape(5, 4, 5)]).top1 is None


def test_the_likely_drop_is_told_where_scores_can_be_made_probabilities() -> None:
    b = A.clone()
    b[:5] = -b[:5]
    assert agreement([b], [A]).likely_drop is None
    cold, warm = (agreement([b], [A], temperature=t).likely_drop for t in (0.1, 10.0))
    assert cold is not None and warm is not None and 0.2 < cold < 0.25 and 0 < warm < 0.1
    assert agreement([A[:, :1]], [A[:, :1]], temperature=1.0).likely_drop is None


def test_largest_difference_is_over_all_outputs_and_integers_do_not_count() -> None:
    ids = torch.arange(20)
    found = agreement([A, A + 1, ids], [A, A - 1, ids])
    assert found.max_abs == pytest.approx(2)
    assert agreement([ids], [ids]).cosine == 1.0


def test_a_different_number_of_outputs_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        agreement([A], [A, A])


def test_outputs_that_are_both_nothing_are_alike() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    assert agreement([zeros], [zeros]).cosine == 1.0
    assert agreement([ones], [zeros]).cosine == 0.0
