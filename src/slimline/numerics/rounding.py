"""Encode a layer's weight by one of the rounding rules, for every method that stores integers."""

from __future__ import annotations

from typing import Literal

import torch

from slimline.core.formats import Affine
from slimline.numerics.affine import weight_scale
from slimline.numerics.hessian import round_second_order

Rounding = Literal["nearest", "second_order"]


def encode(weight: torch.Tensor, format: Affine, rounding: Rounding, moment: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Parts of ``weight`` in ``format``.

    ``moment``: ``E[x xᵀ]`` of the layer's input, ``[n, n]`` or ``[groups, n, n]`` with ``n`` the size of
    ``weight[0]``. Without it, or with ``nearest``, min-max scales and nearest rounding at 8 bits, scales of
    least squared error below.
    """
    second_order = rounding == "second_order" and moment is not None and format.axis == 0
    importance = None
    if second_order:
        assert moment is not None
        energy = moment.diagonal(dim1=-2, dim2=-1)
        if energy.ndim == 2:
            energy = energy.repeat_interleave(weight.shape[0] // energy.shape[0], 0)
        importance = energy.reshape(-1, *weight.shape[1:]).to(weight.dtype)
    scale = weight_scale(weight, format, "minmax" if format.bits == 8 and not second_order else "mse", importance)
    if not second_order:
        return format.quantize(weight, scale)
    assert moment is not None
    spread = format.spread(scale, tuple(weight.shape)).expand(weight.shape).flatten(1)
    flat = weight.detach().flatten(1)
    if moment.ndim == 2:
        values = round_second_order(flat, moment, spread, format.limit)
    else:
        per = len(flat) // len(moment)
        values = torch.cat([round_second_order(flat[g * per : (g + 1) * per], m, spread[g * per : (g + 1) * per], format.limit) for g, m in enumerate(moment)])
    return {"values": values.reshape(weight.shape), "scale": scale.float()}
