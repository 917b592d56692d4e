from __future__ import annotations

import math

import pytest
import torch

from slimline.numerics.entropy import NARROW, coded_bytes, float_bits, integer_bits


def test_independent_integers_take_their_entropy_and_a_little_to_learn_it() -> None:
    values = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]).repeat(5000)[torch.randperm(40_000)].reshape(200, 200)
    exact = 40_000 * (2 * 3 / 8 * math.log2(8 / 3) + 2 / 8 * math.log2(4))
    assert 0.995 * exact < integer_bits(values) < 1.01 * exact  # chance has the classes differ a little


def test_rows_and_columns_of_different_size_take_less_than_one_table_for_all() -> None:
    sizes = torch.exp(0.8 * torch.randn(200, 1)) * torch.exp(0.8 * torch.randn(1, 200)) * 5
    values = torch.distributions.Laplace(0.0, sizes).sample().round()
    counts = torch.unique(values, return_counts=True)[1].double()
    together = float((counts * torch.log2(counts.sum() / counts)).sum())
    assert integer_bits(values) < 0.97 * together


@pytest.mark.parametrize("scale", [1.0, 4.0, 20.0])
def test_the_estimate_is_near_the_archives_size(scale: float) -> None:
    import numpy as np

    from slimline.archive.coder import Encoder
    from slimline.archive.integers import Integers

    values = (
        torch.distributions.Laplace(0.0, scale * torch.exp(0.5 * torch.randn(150, 1)) * torch.exp(0.5 * torch.randn(1, 150))).sample().round().clamp(-127, 127)
    )
    encoder = Encoder()
    Integers().code(encoder, (1, 150, 150), 7, values.numpy().astype(np.int64)[None])
    assert integer_bits(values) / 8 == pytest.approx(len(encoder.finish()), rel=0.06)


def test_rounded_floats_take_less() -> None:
    values = torch.rand(1000) + 0.5
    assert float_bits(values.bfloat16().float()) < 0.45 * float_bits(values)
    assert 0.7 * 32_000 < float_bits(values) < 32_000


def test_parts_are_summed_in_bytes() -> None:
    parts = {"values": torch.randint(-1, 2, (50, 50), dtype=torch.int8), "scale": torch.rand(50)}
    assert coded_bytes(parts) == pytest.approx((integer_bits(parts["values"]) + float_bits(parts["scale"])) / 8)


def test_an_empty_or_constant_tensor_takes_next_to_nothing() -> None:
    assert integer_bits(torch.zeros(0, 4)) == 0
    assert integer_bits(torch.full((30, 30), 3)) < 10


def test_integers_of_a_wide_span_are_sorted_and_take_the_same() -> None:
    torch.manual_seed(0)
    narrow = torch.randint(-7, 8, (40, 30))
    wide = narrow * 2 * NARROW
    assert integer_bits(wide) == pytest.approx(integer_bits(narrow), rel=1e-3)
