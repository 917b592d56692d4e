"""Second-order rounding: choose integers by the error of the layer's output, not of its weights.

The output error of a linear layer is ``tr(ΔW M ΔWᵀ)`` with ``M = E[x xᵀ]``, exactly.

References:
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", ICLR 2023, eq. 2-3 and section 3.3 (Cholesky form).
    Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992.
"""

from __future__ import annotations

from typing import Literal

import torch

Order = Literal["energy", "columns"]
DAMPING = 0.01  # of the mean diagonal: GPTQ's own choice
BLOCK = 128


def output_error(delta: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Mean squared change of the output, ``tr(ΔW M ΔWᵀ)``. ``delta: [out, n]``, ``moment: [n, n]``; a scalar."""
    d, m = delta.double(), moment.double()
    return torch.einsum("oi,ij,oj->", d, m, d)


def round_second_order(weight: torch.Tensor, moment: torch.Tensor, scale: torch.Tensor, limit: int, order: Order = "energy") -> torch.Tensor:
    """Integers ``[..., out, n]`` of ``weight`` under ``scale`` (broadcastable to it), column by column, each error pushed onto the columns to come.

    ``moment [..., n, n]`` is ``E[x xᵀ]`` of the layer's input; leading dimensions (groups of a convolution) go
    side by side. ``order``: by falling energy of the input (what matters most is rounded while the most columns
    can still make up for it), or as the columns lie.

    Example:
        >>> w, m = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.99], [0.99, 1.0]])
        >>> round_second_order(w, m, torch.ones(1, 1), 7).tolist()   # nearest rounding gives 0, 0: an output of 0 for 0.8
        [[0, 1]]
    """
    h = moment.double()
    n = h.shape[-1]
    energy = h.diagonal(dim1=-2, dim2=-1)
    sequence = energy.argsort(dim=-1, descending=True, stable=True) if order == "energy" else torch.arange(n).expand(energy.shape)
    across, down = sequence.unsqueeze(-2), sequence.unsqueeze(-1)
    upper = _inverse_root(h.gather(-2, down.expand(h.shape)).gather(-1, across.expand(h.shape)))
    places = across.expand(weight.shape)
    w = weight.detach().double().gather(-1, places)
    s = scale.detach().double().expand(weight.shape).gather(-1, places)
    q = torch.empty_like(w)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = torch.empty_like(w[..., start:stop])
        for i in range(start, stop):
            q[..., i] = torch.round(w[..., i] / s[..., i]).clamp_(-limit, limit)
            error = (w[..., i] - q[..., i] * s[..., i]) / upper[..., i, i, None]
            w[..., i:stop] -= error[..., None] * upper[..., i, None, i:stop]
            errors[..., i - start] = error
        w[..., stop:] -= errors @ upper[..., start:stop, stop:]
    return torch.empty_like(q).scatter_(-1, places, q).to(torch.int8)


def _inverse_root(h: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse, whose row i is what the error of column i does to those after it."""
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    dead = (diagonal <= 0).double()  # inputs that are always zero
    damped = h + torch.diag_embed(dead + DAMPING * diagonal.mean(-1, keepdim=True).clamp_min(1e-12))
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor
