from __future__ import annotations

import numpy as np
import pytest

from slimline.archive.blocks import Blocks
from slimline.archive.coder import Decoder, Encoder


def test_large_integers_come_back_and_rows_of_different_size_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    values = np.clip(np.round(rng.laplace(0, np.repeat([2.0, 30.0], 150)[:, None], (300, 500))), -127, 127).astype(np.int64)
    encoder = Encoder()
    Blocks(257).integers(encoder, values.shape, -128, values)
    data = encoder.finish()
    counts = np.bincount(values.ravel() + 128)
    counts = counts[counts > 0]
    order_0 = (counts * np.log2(counts.sum() / counts)).sum() / 8
    assert len(data) < 0.95 * order_0
    assert (Blocks(257).integers(Decoder(data), values.shape, -128, None) == values).all()


def test_bytes_come_back() -> None:
    values = np.random.default_rng(0).integers(0, 3, 50_000).astype(np.uint8)
    encoder = Encoder()
    Blocks(256).planes(encoder, values.size, values)
    data = encoder.finish()
    assert len(data) == pytest.approx(50_000 * np.log2(3) / 8, rel=0.03)
    assert (Blocks(256).planes(Decoder(data), values.size, None) == values).all()
