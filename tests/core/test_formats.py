"""Formats: the conformance suite over the built-in ones, and what each does to numbers."""

from __future__ import annotations

import pytest
import torch

from slimline.core.formats import Affine, Float
from slimline.errors import UnsupportedFormat
from slimline.testing.format_suite import FormatSuite


class TestBuiltIn(FormatSuite):
    formats = (
        Float(),
        *(Affine(bits=b, granularity=g, group=4 if g == "per_group" else 0) for b in (2, 4, 8) for g in ("per_tensor", "per_channel", "per_group")),
        Affine(bits=8, axis=1),
    )
    refused = ((Affine(bits=4, granularity="per_group", group=4), (3, 6)),)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_decode_is_the_nearest_point_of_the_grid(bits: int) -> None:
    format = Affine(bits=bits)
    weight = torch.randn(3, 20)
    parts = format.encode(weight)
    grid = torch.arange(-format.limit, format.limit + 1)
    for row, scale, back in zip(weight, parts["scale"], format.decode(parts), strict=True):
        nearest = (grid * scale)[(row[:, None] - grid * scale).abs().argmin(1)]
        torch.testing.assert_close(back, nearest)


def test_the_largest_magnitude_of_each_channel_is_exact() -> None:
    weight = torch.randn(4, 3, 3, 3)
    back = Affine(bits=4).decode(Affine(bits=4).encode(weight))
    torch.testing.assert_close(back.abs().flatten(1).amax(1), weight.abs().flatten(1).amax(1))


def test_int4_takes_half_a_byte_each_and_four_bytes_per_scale() -> None:
    assert Affine(bits=4).estimate((10, 7)) == 35 + 40
    assert Affine(bits=2, granularity="per_tensor").estimate((3, 3)) == 3 + 4
    assert Affine(bits=4, granularity="per_group", group=32).estimate((2, 64)) == 64 + 16


def test_a_group_without_per_group_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="group size goes with per_group"):
        Affine(group=32)
    with pytest.raises(UnsupportedFormat, match="group size goes with per_group"):
        Affine(granularity="per_group")


def test_formats_compare_by_value_and_can_be_keys() -> None:
    assert {Affine(bits=4): 1}[Affine(bits=4)] == 1
    assert Affine(bits=4) != Affine(bits=4, axis=1)
