"""Rate-aware rounding: integers that lose little *and* code well.

A coarser grid takes fewer bits once it is entropy-coded, and a value between two of its points may go to the one that
is cheaper. Both follow from one Lagrangian, ``distortion + multiplier * bits``: at high resolution it is least where the
step's square is ``6 / ln 2`` times the multiplier, which ties the two together.

References:
    Conzelmann and Bamler, "Reducing Storage of Pretrained Neural Networks by Rate-Constrained Quantization and Entropy Coding" (CERWU), 2025: second-order rounding with a rate term.
    Frantar et al., "GPTQ", ICLR 2023, eq. 2-3 (errors are made up for by the columns to come).
    Cover and Thomas, "Elements of Information Theory", 2006, section 10.3.3 (reverse water-filling).
    Gish and Pierce, "Asymptotically Efficient Quantizing", 1968 (uniform steps, entropy-coded).
    Kirchhoffer et al. 2021 (rate-distortion optimised quantization in NNCodec).
"""

from __future__ import annotations

import math

import torch

from slimline.core.formats import Affine
from slimline.numerics.entropy import code_lengths, magnitude_classes
from slimline.numerics.hessian import BLOCK, _inverse_root

SIGNIFICANT = 8  # bits of a scale's mantissa, the leading one included, as in bfloat16


def significant(values: torch.Tensor, bits: int = SIGNIFICANT) -> torch.Tensor:
    """Floats rounded to ``bits`` significant bits, which an archive need not spend more on.

    Example:
        >>> significant(torch.tensor([1.01, 1000.0]), 4).tolist()
        [1.0, 1024.0]
    """
    mantissa, exponent = torch.frexp(values.double())
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits).to(values.dtype)


def encode_rate_aware(weight: torch.Tensor, format: Affine, moment: torch.Tensor | None, rate: float) -> dict[str, torch.Tensor]:
    """Parts of ``weight`` on a grid ``2 ** rate`` times as coarse as the format's own, which saves about ``rate`` bits of each coded value.

    All channels share one step, the root mean square of what each would have had, unless a channel's range needs more. Coded values take
    fewer bits where they are small, so a step of its own gains a channel nothing, and equal steps are the best there are where all outputs count
    alike (reverse water-filling). On ResNet-20 and LeNet-5 they took 0.05 to 0.5 bits less at the same or less loss in all but a few layers.

    ``moment``: ``E[x xᵀ]`` of the layer's input, ``[n, n]`` or ``[groups, n, n]`` with ``n`` the size of ``weight[0]``; outputs are then the first
    dimension. Without it the weight's own error counts.

    Example:
        >>> parts = encode_rate_aware(torch.tensor([[127.0, 40.0, -3.0]]), Affine(), None, 4)
        >>> parts["scale"].tolist(), parts["values"].tolist()
        ([16.0], [[8, 2, 0]])
    """
    own = format.encode(weight)["scale"]
    whole = own / 2 if format.reduce_range else own  # a bit that stays free makes no channel coarser that does not need it
    scale = significant(torch.maximum(whole.square().mean().sqrt() * 2**rate, own))
    spread = format.spread(scale, tuple(weight.shape)).expand(weight.shape)
    moments = None if moment is None else moment.reshape(-1, *moment.shape[-2:])
    groups = 1 if moments is None else len(moments)
    shape = (groups, len(weight) // groups, math.prod(weight.shape[1:]))
    values = round_rate_aware(weight.detach().reshape(shape), moments, spread.reshape(shape), format.limit)
    return {"values": values.reshape(weight.shape), "scale": scale}


def round_rate_aware(weight: torch.Tensor, moment: torch.Tensor | None, scale: torch.Tensor, limit: int) -> torch.Tensor:
    """Integers ``[groups, out, n]`` of ``weight`` under ``scale`` (broadcastable to it).

    ``moment [groups, n, n]`` is ``E[x xᵀ]``; without it all errors count alike and none is made up for. Each value goes to the nearest
    point of the grid or to the next one towards zero.

    Example:
        >>> w = torch.tensor([[[0.55, 3.2] + [0.0] * 62]])
        >>> round_rate_aware(w, None, torch.ones(1, 1, 1), 7)[0, 0, :3].tolist()   # a 1 would be rare, and is expensive
        [0, 3, 0]
    """
    s = scale.detach().double().expand(weight.shape)
    w = weight.detach().double()
    n = w.shape[-1]
    if moment is None:
        upper = torch.eye(n, dtype=torch.float64).expand(len(w), n, n)
        order = torch.arange(n).expand(len(w), n)
    else:
        h = moment.double()
        order = h.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
        upper = _inverse_root(h.gather(-2, order.unsqueeze(-1).expand(h.shape)).gather(-1, order.unsqueeze(-2).expand(h.shape)))
    places = order.unsqueeze(-2).expand(w.shape)
    w, s = w.gather(-1, places), s.gather(-1, places)  # copies: the columns are changed
    importance = 1 / upper.diagonal(dim1=-2, dim2=-1).square()
    multiplier = math.log(2) / 6 * float((s.square() * importance.unsqueeze(-2)).mean())
    flat = torch.round(w / s).clamp_(-limit, limit).reshape(-1, n)  # code lengths are those of nearest rounding; those of a second round change little
    classes = magnitude_classes(flat)
    q = _columns(w, s, upper, importance, multiplier * code_lengths(flat, classes, limit), classes.reshape(w.shape), limit)
    return torch.empty_like(q).scatter_(-1, places, q).to(torch.int8)


def _columns(
    w: torch.Tensor, s: torch.Tensor, upper: torch.Tensor, importance: torch.Tensor, price: torch.Tensor, classes: torch.Tensor, limit: int
) -> torch.Tensor:
    """Column by column, each error pushed onto the columns to come (``w`` is changed)."""
    q = torch.empty_like(w)
    n = w.shape[-1]
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = torch.empty_like(w[..., start:stop])
        for i in range(start, stop):
            exact = w[..., i] / s[..., i]
            near = torch.round(exact).clamp_(-limit, limit)
            less = near - near.sign()
            weight = s[..., i].square() * importance[..., None, i]
            lengths = price[classes[..., i]]
            cost_near = weight * (exact - near).square() + lengths.gather(-1, (near.long() + limit).unsqueeze(-1)).squeeze(-1)
            cost_less = weight * (exact - less).square() + lengths.gather(-1, (less.long() + limit).unsqueeze(-1)).squeeze(-1)
            chosen = torch.where(cost_less < cost_near, less, near)
            q[..., i] = chosen
            error = (w[..., i] - chosen * s[..., i]) / upper[..., i, i, None]
            w[..., i:stop] -= error[..., None] * upper[..., i, None, i:stop]
            errors[..., i - start] = error
        w[..., stop:] -= errors @ upper[..., start:stop, stop:]
    return q
