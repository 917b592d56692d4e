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
    """Integers ``[out, n]`` of ``weight [out, n]`` under ``scale`` (broadcastable to it), column by column, each error pushed onto the columns to come.

    ``moment [n, n]`` is ``E[x xᵀ]`` of the layer's input. ``order``: by falling energy of the input
    (what matters most is rounded while the most columns can still make up for it), or as the columns lie.

    Example:
        >>> w, m = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.99], [0.99, 1.0]])
        >>> round_second_order(w, m, torch.ones(1, 1), 7).tolist()   # nearest rounding gives 0, 0: an output of 0 for 0.8
        [[0, 1]]
    """
    n = weight.shape[1]
    sequence = torch.argsort(moment.diagonal(), descending=True, stable=True) if order == "energy" else torch.arange(n)
    w = weight.detach().double()[:, sequence].clone()
    s = scale.detach().double().expand(weight.shape)[:, sequence]
    h = moment.double()[sequence][:, sequence]
    dead = h.diagonal() <= 0
    h = h + torch.diag(dead.double()) + torch.eye(n, dtype=torch.float64) * (DAMPING * h.diagonal().mean().clamp_min(1e-12))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    q = torch.empty_like(w)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = torch.empty(w.shape[0], stop - start, dtype=torch.float64)
        for i in range(start, stop):
            q[:, i] = torch.round(w[:, i] / s[:, i]).clamp_(-limit, limit)
            error = (w[:, i] - q[:, i] * s[:, i]) / upper[i, i]
            w[:, i:stop] -= error[:, None] * upper[i, i:stop]
            errors[:, i - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    back = torch.empty_like(sequence)
    back[sequence] = torch.arange(n)
    return q[:, back].to(torch.int8)
