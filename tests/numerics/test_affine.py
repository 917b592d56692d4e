"""Ranges and scales, against slow and obvious references."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from slimline.core.formats import Affine
from slimline.errors import DataError
from slimline.numerics.affine import BINS, WEIGHT_SHARES, Histogram, fake_quantize, grid_limits, quantize, range_errors, value_range, weight_scale


def squared_error(x: torch.Tensor, scale: float, zero_point: int, bits: int = 8) -> float:
    """Of every sample, one by one."""
    total = 0.0
    for value in x.flatten().tolist():
        integer = min(max(round(value / scale) + zero_point, 0), 2**bits - 1)
        total += (value - scale * (integer - zero_point)) ** 2
    return total


def test_quantize_gives_the_nearest_multiple() -> None:
    x = torch.randn(200)
    back = quantize(x, 0.3)
    assert float((back - x).abs().max()) <= 0.15 + 1e-6
    torch.testing.assert_close(back / 0.3, (back / 0.3).round())


@pytest.mark.parametrize("signed", [False, True])
def test_fake_quantize_agrees_with_torch(signed: bool) -> None:
    x = torch.randn(500) * 3
    zero = -5 if signed else 123
    low, high = grid_limits(8, signed)
    torch.testing.assert_close(fake_quantize(x, 0.02, zero, signed=signed), torch.fake_quantize_per_tensor_affine(x, 0.02, zero, low, high))


def test_a_histogram_holds_range_and_count_of_all_that_it_saw() -> None:
    parts = [torch.randn(7, 3) * s for s in (1.0, 5.0, 0.1)]
    histogram = Histogram.of(parts[0])
    for part in parts[1:]:
        histogram = histogram.observe(part)
    everything = torch.cat(parts)
    assert histogram.count == everything.numel()
    assert (histogram.minimum, histogram.maximum) == (float(everything.min()), float(everything.max()))


def test_a_merged_histogram_is_within_a_bin_of_the_direct_one() -> None:
    first, second = torch.randn(4000), torch.randn(4000) * 4 + 1
    merged, direct = Histogram.of(first).merge(Histogram.of(second)), Histogram.of(torch.cat((first, second)))
    width = (direct.maximum - direct.minimum) / BINS
    for share in (0.01, 0.3, 0.5, 0.9):
        # Bins move at their centres: each merge may shift a sample by one bin.
        assert merged.quantile(share) == pytest.approx(direct.quantile(share), abs=2.5 * width)


def test_quantiles_agree_with_sorting() -> None:
    x = torch.randn(5000)
    histogram = Histogram.of(x)
    for share in (0.001, 0.25, 0.5, 0.999):
        assert histogram.quantile(share) == pytest.approx(float(x.quantile(share)), abs=2 * (histogram.maximum - histogram.minimum) / BINS + 0.02)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_a_constant_value_has_a_grid_that_holds_it(value: float) -> None:
    scale, zero = value_range(Histogram.of(torch.full((9,), value)), "minmax")
    assert float(fake_quantize(torch.tensor([value]), scale, zero)) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="calibration samples"):
        Histogram.of(torch.tensor([1.0, value]))


def test_an_empty_value_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Histogram.of(torch.zeros(0))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_zero_is_exactly_on_the_grid(method: Literal["minmax", "percentile", "mse"]) -> None:
    for x in (torch.randn(3000), torch.randn(3000) + 9, torch.randn(3000) - 9, torch.rand(3000)):
        scale, zero = value_range(Histogram.of(x), method)
        assert 0 <= zero <= 255 and float(fake_quantize(torch.zeros(1), scale, zero)) == 0.0


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_values_that_are_never_negative_get_zero_point_zero(method: Literal["minmax", "percentile", "mse"]) -> None:
    assert value_range(Histogram.of(torch.randn(3000).relu()), method)[1] == 0
    assert value_range(Histogram.of(torch.rand(3000) + 1), method)[1] == 0


def test_a_signed_grid_is_the_unsigned_one_shifted_by_half() -> None:
    histogram = Histogram.of(torch.randn(1000))
    (scale, zero), (signed_scale, signed_zero) = value_range(histogram, "mse"), value_range(histogram, "mse", signed=True)
    assert signed_scale == scale and signed_zero == zero - 128


def test_minmax_clips_nothing() -> None:
    x = torch.randn(1000)
    scale, zero = value_range(Histogram.of(x), "minmax")
    assert float((fake_quantize(x, scale, zero) - x).abs().max()) <= 0.5 * scale * 1.01 + scale * 0.5  # half a step, and half for the rounded zero


def test_percentile_ignores_a_lone_outlier() -> None:
    x = torch.cat((torch.randn(50_000), torch.tensor([1000.0])))
    assert value_range(Histogram.of(x), "percentile")[0] < value_range(Histogram.of(x), "minmax")[0] / 100


@pytest.mark.parametrize("bits", [4, 8])
def test_range_errors_are_those_of_the_samples(bits: int) -> None:
    x = torch.randn(2000)
    histogram = Histogram.of(x)
    lows, highs = torch.tensor([-3.0, -1.5, -2.0]).double(), torch.tensor([3.0, 2.0, 0.5]).double()
    errors = range_errors(histogram, lows, highs, bits)
    for low, high, error in zip(lows.tolist(), highs.tolist(), errors.tolist(), strict=True):
        scale = (high - low) / (2**bits - 1)
        # A sample counts at its bin's centre: a bin is 1/8 of a step at 8 bits.
        assert error == pytest.approx(squared_error(x, scale, round(-low / scale), bits), rel=0.1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", ["normal", "relu", "skewed", "outlier"])
def test_mse_is_at_least_as_good_as_a_slow_search_over_both_ends(shape: str, bits: int) -> None:
    x = torch.randn(1500)
    x = {"normal": x, "relu": x.relu(), "skewed": x.exp() - 0.5, "outlier": torch.cat((x, torch.tensor([60.0])))}[shape]
    scale, zero = value_range(Histogram.of(x), "mse", bits)
    levels = 2**bits - 1
    best = math.inf
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    for a in torch.linspace(0.05, 1, 12).tolist():
        for b in torch.linspace(0.05, 1, 12).tolist():
            s = (high * b - low * a) / levels
            best = min(best, squared_error(x, s, round(-low * a / s), bits))
    assert squared_error(x, scale, zero, bits) <= best * 1.03  # bins against samples


FORMATS = [Affine(bits=4), Affine(bits=2), Affine(bits=8, granularity="per_tensor"), Affine(bits=4, granularity="per_group", group=4), Affine(bits=4, axis=1)]


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f"{f.name} axis {f.axis}")
def test_mse_scales_are_the_best_of_a_slow_search(format: Affine) -> None:
    weight = torch.randn(6, 8) ** 3
    found = weight_scale(weight, format, "mse")
    assert found.shape == format.encode(weight)["scale"].shape

    def runs(scale: torch.Tensor) -> list[tuple[list[float], float]]:
        """The weights that share each scale."""
        spread = format.spread(scale, (6, 8)).expand(6, 8)
        if format.granularity == "per_tensor":
            return [(weight.flatten().tolist(), float(scale))]
        if format.granularity == "per_channel":
            return [(w.tolist(), float(s[0])) for w, s in zip(weight.movedim(format.axis, 0), spread.movedim(format.axis, 0), strict=True)]
        return [(w.tolist(), float(s[0])) for w, s in zip(weight.reshape(-1, format.group), spread.reshape(-1, format.group), strict=True)]

    def error(values: list[float], scale: float) -> float:
        return sum((v - scale * min(max(round(v / scale), -format.limit), format.limit)) ** 2 for v in values)

    for (values, scale), (_, whole) in zip(runs(found), runs(format.encode(weight)["scale"]), strict=True):
        smallest, steps = WEIGHT_SHARES[format.bits]
        slow = min(error(values, whole * smallest ** (i / (steps - 1))) for i in range(0, steps, 3))
        assert error(values, scale) <= slow * (1 + 1e-4)


def test_minmax_scales_are_those_of_encode() -> None:
    weight = torch.randn(5, 7)
    torch.testing.assert_close(weight_scale(weight, Affine(bits=4), "minmax"), Affine(bits=4).encode(weight)["scale"])
