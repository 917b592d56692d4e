from __future__ import annotations

import math

import pytest
import torch

from slimline.core.formats import Affine
from slimline.numerics.entropy import integer_bits
from slimline.numerics.hessian import output_error, round_second_order
from slimline.numerics.rate import encode_rate_aware, round_rate_aware, significant


def layer(outputs: int = 32, inputs: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the second moments of correlated inputs."""
    x = (torch.randn(2000, inputs) @ torch.randn(inputs, inputs) * 0.1).relu()
    return torch.distributions.Laplace(0.0, 1.0).sample((outputs, inputs)), x.T @ x / len(x)


@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_a_unit_of_rate_is_about_a_bit(rate: float) -> None:
    weight, moment = layer()
    plain, coarse = (integer_bits(encode_rate_aware(weight, Affine(), moment, r)["values"]) / weight.numel() for r in (0.0, rate))
    assert plain - coarse == pytest.approx(rate, abs=0.35)  # on coarse grids the rate term saves more


def test_its_lagrangian_is_below_that_of_rounding_without_the_rate() -> None:
    weight, moment = layer()
    scale = weight.abs().amax(1, keepdim=True) / 4
    ours, theirs = round_rate_aware(weight[None], moment[None], scale[None], 127)[0], round_second_order(weight, moment, scale, 127)
    assert integer_bits(ours) < 0.98 * integer_bits(theirs)

    def bits_of_error(values: torch.Tensor) -> float:
        """What the same error would take in bits, had it been bought by a finer grid: half a bit of each weight for a factor of two."""
        return 0.5 * weight.numel() * math.log2(float(output_error(values * scale - weight, moment)))

    assert integer_bits(ours) + bits_of_error(ours) < integer_bits(theirs) + bits_of_error(theirs)


def test_groups_are_rounded_by_their_own_moments() -> None:
    weight, moment = layer()
    other = layer()[1]
    both = encode_rate_aware(torch.cat([weight, weight]), Affine(), torch.stack([moment, other]), 4.0)
    first, second = (Affine().decode({"values": v, "scale": s}) for v, s in zip(both["values"].split(32), both["scale"].split(32), strict=True))
    assert output_error(first - weight, moment) < output_error(second - weight, moment)
    assert output_error(second - weight, other) < output_error(first - weight, other)


def test_convolutions_and_linear_layers_without_moments_keep_their_shape() -> None:
    weight = torch.randn(6, 3, 3, 3)
    parts = encode_rate_aware(weight, Affine(), None, 2.0)
    assert parts["values"].shape == weight.shape
    assert (Affine().decode(parts) - weight).abs().max() <= 1.001 * parts["scale"].max()


def test_scales_are_rounded_to_eight_significant_bits() -> None:
    values = torch.rand(100) + 1e-3
    assert torch.equal(significant(values), significant(values).bfloat16().float())
    assert ((significant(values) - values).abs() <= values * 2**-8).all()
