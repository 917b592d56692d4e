"""The allocator is exact: against every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slimline.search.allocator import allocate


@pytest.mark.parametrize("seed", range(8))
def test_no_combination_is_better(seed: int) -> None:
    random = np.random.default_rng(seed)
    cost = [random.random(3) for _ in range(5)]
    loss = [random.random(3) for _ in range(5)]
    limit = 0.4 * 5
    best = min(
        (sum(cost[i][j] for i, j in enumerate(c)) for c in itertools.product(range(3), repeat=5) if sum(loss[i][j] for i, j in enumerate(c)) <= limit),
        default=None,
    )
    found = allocate(cost, [(loss, limit)])
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert sum(loss[i][j] for i, j in enumerate(found)) <= limit + 1e-9
        assert sum(cost[i][j] for i, j in enumerate(found)) <= best * (1 + 2e-3)


def test_limits_that_nothing_meets_give_none() -> None:
    assert allocate([np.array([1.0, 2.0])], [([np.array([1.0, 1.0])], 0.5)]) is None


def test_several_limits_hold_at_once() -> None:
    found = allocate(
        [np.array([0.0, 1.0]), np.array([0.0, 1.0])], [([np.array([1.0, 0.0]), np.array([1.0, 0.0])], 1.0), ([np.array([0.0, 1.0]), np.array([0.0, 1.0])], 1.0)]
    )
    assert found is not None and sorted(found) == [0, 1]
