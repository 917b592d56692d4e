"""Encode a layer's weight by one of the rounding rules, for every method that stores integers."""

from __future__ import annotations

from typing import Literal

import torch

from slimline.core.formats import Affine
from slimline.errors import UnsupportedFormat
from slimline.numerics.affine import WeightRange, weight_scale
from slimline.numerics.hessian import round_second_order

Rounding = Literal["nearest", "second_order"]


def encode(weight: torch.Tensor, format: Affine, rounding: Rounding, moment: torch.Tensor | None, weight_range: WeightRange = "mse") -> dict[str, torch.Tensor]:
    """Parts of ``weight`` in ``format``.

    ``moment``: ``E[x xᵀ]`` of the layer's input, ``[n, n]`` or ``[groups, n, n]`` with ``n`` the size of
    ``weight[0]``; ``second_order`` needs it, and then a squared error counts by the energy of its input.

    Raises:
        UnsupportedFormat: second-order rounding without a moment, or where the outputs are not the first dimension.

    Example:
        >>> encode(torch.tensor([[0.9, 0.2]]), Affine(bits=2), "nearest", None, "minmax")["values"].tolist()
        [[1, 0]]
    """
    if rounding == "nearest":
        return format.quantize(weight, weight_scale(weight, format, weight_range))
    if moment is None or format.axis != 0:
        raise UnsupportedFormat(f"{format.name}: second-order rounding needs the second moments of the layer's input, and outputs along dimension 0 (here {format.axis}).")
    energy = moment.diagonal(dim1=-2, dim2=-1)
    groups = len(moment) if moment.ndim == 3 else 1
    importance = energy.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0).reshape(weight.shape).to(weight.dtype)
    scale = weight_scale(weight, format, weight_range, importance)
    flat = weight.detach().flatten(1)
    spread = format.spread(scale, tuple(weight.shape)).expand(weight.shape).flatten(1)
    parts = zip(flat.chunk(groups), moment.reshape(groups, *moment.shape[-2:]), spread.chunk(groups), strict=True)
    values = torch.cat([round_second_order(w, m, s, format.limit) for w, m, s in parts])
    return {"values": values.reshape(weight.shape), "scale": scale.float()}
