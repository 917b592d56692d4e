from __future__ import annotations

import numpy as np
import pytest

from slimline.archive.coder import Decoder, Encoder
from slimline.archive.integers import Integers


def coded(values: np.ndarray) -> int:
    """Bytes; checked to come back."""
    top = max(1, int(np.abs(values).max())).bit_length() - 1
    encoder = Encoder()
    Integers().code(encoder, values.shape, top, values)
    data = encoder.finish()
    assert (Integers().code(Decoder(data), values.shape, top, None) == values).all()
    return len(data)


def order_0(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def test_independent_numbers_cost_their_entropy_and_what_it_takes_to_learn_it() -> None:
    values = np.round(np.random.default_rng(0).laplace(0, 8, (1, 200, 200))).astype(np.int64)
    assert coded(values) == pytest.approx(order_0(values), rel=0.015)


def test_rows_and_columns_of_different_size_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(1.5, 0.8, (1, 200, 1)) * rng.lognormal(0, 0.8, (1, 1, 200))
    values = np.round(rng.laplace(0, sizes)).astype(np.int64)
    assert coded(values) < 0.96 * order_0(values)


def test_smooth_kernels_cost_less() -> None:
    rng = np.random.default_rng(0)
    smooth = np.round(20 * rng.normal(size=(1, 40, 40)) + 2 * rng.normal(size=(9, 40, 40))).astype(np.int64)
    assert coded(smooth) < 0.97 * order_0(smooth)


def test_independent_zeros_cost_their_entropy_too() -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random((1, 300, 300)) < 0.01, rng.integers(-3, 4, (1, 300, 300)), 0)
    assert coded(values) < 1.04 * order_0(values)


@pytest.mark.parametrize("value", [0, 1, -1, 127, -(2**31)])
def test_constant_tensors_cost_next_to_nothing(value: int) -> None:
    assert coded(np.full((1, 64, 64), value)) < 40 + 3 * abs(value).bit_length()  # what it takes to learn each question's answer


def test_a_part_that_is_unlike_all_before_costs_what_it_takes_to_learn_and_not_a_wrong_guess_for_each_number() -> None:
    values = np.zeros((1, 60, 40), np.int64)
    values[:, 30:] = np.random.default_rng(0).choice([0, 1], (30, 40), p=[0.05, 0.95])
    assert coded(values) < 120  # the ones' own entropy is 43 bytes
