"""Encode a layer's weight by one of the rounding rules, for every method that stores integers."""

from __future__ import annotations

from typing import Literal

import torch

from slimline.core.formats import Affine
from slimline.errors import UnsupportedFormat
from slimline.numerics.affine import WeightRange, weight_scale
from slimline.numerics.hessian import descend, round_second_order

Rounding = Literal["nearest", "second_order"]
Learned = Literal["nearest", "second_order", "learned"]
# Shares of the full range that second-order rounding tries. It makes up for a coarse grid by pushing errors on, so
# clipping pays later than for nearest rounding, and never at 8 bits (ResNet-20: the same divergence to four digits).
HALVES = (1.0, 0.5, 0.25)  # the same where scales are powers of two
SHARES = {2: (1.0, 0.85, 0.7, 0.55, 0.4), 4: (1.0, 0.9, 0.8, 0.7), 8: (1.0,)}


def encode(weight: torch.Tensor, format: Affine, rounding: Learned, moment: torch.Tensor | None, weight_range: WeightRange = "mse") -> dict[str, torch.Tensor]:
    """Parts of ``weight`` in ``format``.

    ``moment``: ``E[x xᵀ]`` of the layer's input, ``[n, n]`` or ``[groups, n, n]`` with ``n`` the size of
    ``weight[0]``; ``second_order`` needs it, and its ``mse`` is the error of the outputs after rounding, not of the weights. ``learned`` starts there and descends until no
    single integer's change improves the outputs.

    Raises:
        UnsupportedFormat: second-order rounding without a moment, or where the outputs are not the first dimension.

    Example:
        >>> encode(torch.tensor([[0.9, 0.2]]), Affine(bits=2), "nearest", None, "minmax")["values"].tolist()
        [[1, 0]]
    """
    if rounding == "nearest":
        return format.quantize(weight, weight_scale(weight, format, weight_range))
    if moment is None or format.axis != 0:
        raise UnsupportedFormat(
            f"{format.name}: second-order rounding needs the second moments of the layer's input, and outputs along dimension 0 (here {format.axis})."
        )
    scale = format.encode(weight)["scale"]
    shares = torch.tensor(((HALVES if format.bits < 8 else HALVES[:2]) if format.power_of_two else SHARES[format.bits]) if weight_range == "mse" else (1.0,))
    values, chosen = _round(weight, format.spread(scale, tuple(weight.shape)), moment.reshape(-1, *moment.shape[-2:]), shares, format)
    per_scale = chosen[0] if format.granularity == "per_tensor" else chosen.reshape(-1, *[1] * (scale.ndim - 1))
    settled = (scale * per_scale).float()
    if rounding == "learned":
        square = moment.reshape(-1, *moment.shape[-2:])
        rows, steps, start = (
            t.expand(weight.shape).reshape(len(square), -1, square.shape[-1]) for t in (weight.detach(), format.spread(settled, tuple(weight.shape)), values)
        )
        values = descend(rows, square, steps, format.limit, start).reshape(weight.shape)
    return {"values": values, "scale": settled}


def _round(weight: torch.Tensor, spread: torch.Tensor, moment: torch.Tensor, shares: torch.Tensor, format: Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of the weight's shape, and the share of the range ``[out]`` with which each output loses least (one for all of them ``per_tensor``).

    Rows are rounded independently, so all shares go as rows of one matrix.
    """
    groups, n = moment.shape[:2]
    flat = weight.detach().reshape(groups, -1, n)
    scales = spread.expand(weight.shape).reshape(flat.shape)
    tried = torch.cat([scales * share for share in shares], 1)
    wanted = flat.repeat(1, len(shares), 1)
    values = round_second_order(wanted, moment, tried, format.limit)
    delta = (values * tried - wanted).to(moment.dtype)
    errors = ((delta @ moment) * delta).sum(-1).reshape(groups, len(shares), -1)
    if format.granularity == "per_tensor":
        errors = errors.sum((0, 2), keepdim=True).expand(errors.shape)
    best = errors.argmin(1)
    picked = values.reshape(groups, len(shares), -1, n).gather(1, best[:, None, :, None].expand(-1, 1, -1, n))
    return picked.reshape(weight.shape), shares[best].reshape(-1)
