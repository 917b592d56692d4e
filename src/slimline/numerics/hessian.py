"""Second-order rounding and pruning: choose by the error of the layer's output, not of its weights.

The output error of a linear layer is ``tr(ΔW M ΔWᵀ)`` with ``M = E[x xᵀ]``, exactly.

References:
    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    ICML 2023, section 3 and algorithm 1 (masks, and rounding in the same sweep).
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", ICLR 2023, eq. 2-3 and section 3.3 (Cholesky form).
    Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

Order = Literal["energy", "columns"]
DAMPING = 0.01  # of the mean diagonal: GPTQ's own choice
BLOCK = 32  # columns that are settled before the rest hears of them: half the time of GPTQ's 128 on a layer of 1536 x 384, where memory bounds it, and the same integers
MOST_SWEEPS = 8  # of descent over all columns; four left nothing to do on the layers of the digits network
MOST_WORK = 1e9  # operations of an exact refit: about a second
MOST_ELEMENTS = 8_000_000  # of the systems that are solved side by side


def output_error(delta: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Mean squared change of the output, ``tr(ΔW M ΔWᵀ)``. ``delta: [out, n]``, ``moment: [n, n]``; a scalar."""
    d, m = delta.double(), moment.double()
    return torch.einsum("oi,ij,oj->", d, m, d)


def round_second_order(
    weight: torch.Tensor, moment: torch.Tensor, scale: torch.Tensor, limit: int, order: Order = "energy", mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Integers ``[..., out, n]`` of ``weight`` under ``scale`` (broadcastable to it), column by column, each error pushed onto the columns to come.

    ``moment [..., n, n]`` is ``E[x xᵀ]`` of the layer's input; leading dimensions (groups of a convolution) go
    side by side. ``order``: by falling energy of the input (what matters most is rounded while the most columns
    can still make up for it), or as the columns lie. ``mask`` (of the weight's shape): where it is false the integer is 0.

    Example:
        >>> w, m = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.99], [0.99, 1.0]])
        >>> round_second_order(w, m, torch.ones(1, 1), 7).tolist()   # nearest rounding gives 0, 0: an output of 0 for 0.8
        [[0, 1]]
    """

    def settle(column: torch.Tensor, s: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return torch.round(column / s).clamp_(-limit, limit) * s * kept

    kept = torch.ones_like(weight) if mask is None else mask
    settled = sweep(weight, moment, settle, (scale, kept), order)
    return torch.round(settled / scale.double()).to(torch.int8)


def descend(weight: torch.Tensor, moment: torch.Tensor, scale: torch.Tensor, limit: int, integers: torch.Tensor) -> torch.Tensor:
    """``integers`` ``[..., out, n]`` changed one column at a time, as long as the outputs come closer: a minimum that no single integer's change improves.

    ``scale`` (broadcastable to the weight) and ``moment`` are as in ``round_second_order``, whose result is a good start: a sweep settles each column once, before it knows
    what those to come will leave.

    References:
        Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound), ICML 2020, eq. 20: this objective, which it relaxes and learns by gradients.
        Behdin et al., "QuantEase: Optimization-based Quantization for Language Models", 2023, section 3: cyclic descent on it.

    Example:
        >>> w, m = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.99], [0.99, 1.0]])
        >>> descend(w, m, torch.ones(1, 1), 7, torch.zeros(1, 2, dtype=torch.int8)).tolist()
        [[1, 0]]
    """
    h = moment.double()
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    w, q = weight.detach().double(), integers.double()
    s = scale.detach().double().expand(w.shape)
    gradient = (q * s - w) @ h
    for _ in range(MOST_SWEEPS):
        changed = False
        for i in range(w.shape[-1]):
            energy = diagonal[..., i, None]
            best = (q[..., i] - gradient[..., i] / (energy.clamp_min(1e-300) * s[..., i])).round_().clamp_(-limit, limit)
            step = torch.where(energy > 0, best - q[..., i], 0.0)
            if bool(step.any()):
                gradient += (step * s[..., i]).unsqueeze(-1) * h[..., i, None, :]
                q[..., i] += step
                changed = True
        if not changed:
            break
    return q.to(torch.int8)


def saliency(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Output error when a weight alone goes and the others of its row make up for it: ``w² / [M⁻¹]_jj``; ``[..., out, n]`` as ``weight``.

    References:
        Hassibi and Stork, NIPS 1992, eq. 5.

    Example:
        The second input says what the first says, so neither weight matters much; the third is alone:

        >>> m = torch.tensor([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> saliency(torch.ones(1, 3), m).argmax().item()
        2
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_damped(moment.double())))
    scores: torch.Tensor = weight.detach().double() ** 2 / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return scores.float()


def compensate(weight: torch.Tensor, moment: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``weight`` ``[..., out, n]`` with zeros where ``mask`` is false, the rest moved so that the outputs stay.

    Each row by least squares, as close as its mask allows; where that would be more than ``MOST_WORK`` operations, in one sweep.

    Example:
        >>> w, m = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> [round(v, 1) for v in compensate(w, m, torch.tensor([[False, True]]))[0].tolist()]
        [0.0, 1.9]
    """
    most = int(mask.sum(-1).max())
    if mask[..., 0].numel() * most**3 / 3 > MOST_WORK:
        return sweep(weight, moment, lambda column, kept: column * kept, (mask,)).to(weight.dtype)
    h = _damped(moment.double()).expand(*weight.shape[:-2], *moment.shape[-2:])
    w, m = weight.detach().double(), mask.detach()
    chunk = max(1, MOST_ELEMENTS // max(most, 1) ** 2)
    parts = [_refit(w[..., i : i + chunk, :], h, m[..., i : i + chunk, :], most) for i in range(0, w.shape[-2], chunk)]
    return torch.cat(parts, -2).to(weight.dtype)


def _refit(weight: torch.Tensor, h: torch.Tensor, mask: torch.Tensor, most: int) -> torch.Tensor:
    """Least squares of a few rows: ``H_SS w'_S = (H w)_S`` with S what the row's mask keeps, at most ``most`` of it."""
    places = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :most]
    there = mask.gather(-1, places)
    rows = h.unsqueeze(-3).expand(*weight.shape, h.shape[-1]).gather(-2, places.unsqueeze(-1).expand(*places.shape, h.shape[-1]))
    square = rows.gather(-1, places.unsqueeze(-2).expand(*places.shape, most))
    both = there.unsqueeze(-1) & there.unsqueeze(-2)
    square = torch.where(both, square, torch.eye(most, dtype=h.dtype))
    wanted = (weight @ h).gather(-1, places) * there
    found = torch.cholesky_solve(wanted.unsqueeze(-1), torch.linalg.cholesky(square)).squeeze(-1) * there
    return torch.zeros_like(weight).scatter_(-1, places, found)


def sweep(
    weight: torch.Tensor,
    moment: torch.Tensor,
    settle: Callable[..., torch.Tensor],
    tables: Sequence[torch.Tensor] = (),
    order: Order = "energy",
) -> torch.Tensor:
    """Settle ``weight [..., out, n]`` column by column and push each column's error onto those to come: float64, of its shape.

    ``settle(column, *tables)`` gives the values that a column ``[..., out]`` may have; ``tables`` are broadcastable to the weight and come with their own column.

    References:
        Frantar et al. 2023, algorithm 1.
    """
    h = moment.double()
    n = h.shape[-1]
    energy = h.diagonal(dim1=-2, dim2=-1)
    sequence = energy.argsort(dim=-1, descending=True, stable=True) if order == "energy" else torch.arange(n).expand(energy.shape)
    across, down = sequence.unsqueeze(-2), sequence.unsqueeze(-1)
    upper = _inverse_root(h.gather(-2, down.expand(h.shape)).gather(-1, across.expand(h.shape)))
    places = across.expand(weight.shape)
    w = weight.detach().double().gather(-1, places)
    given = [t.detach().double().expand(weight.shape).gather(-1, places) for t in tables]
    q = torch.empty_like(w)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = torch.empty_like(w[..., start:stop])
        for i in range(start, stop):
            q[..., i] = settle(w[..., i], *(t[..., i] for t in given))
            error = (w[..., i] - q[..., i]) / upper[..., i, i, None]
            w[..., i:stop] -= error[..., None] * upper[..., i, None, i:stop]
            errors[..., i - start] = error
        w[..., stop:] -= errors @ upper[..., start:stop, stop:]
    return torch.empty_like(q).scatter_(-1, places, q)


def _inverse_root(h: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse, whose row i is what the error of column i does to those after it."""
    factor: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(_damped(h))), upper=True)
    return factor


def _damped(h: torch.Tensor) -> torch.Tensor:
    diagonal = h.diagonal(dim1=-2, dim2=-1)
    dead = (diagonal <= 0).double()  # inputs that are always zero
    return h + torch.diag_embed(dead + DAMPING * diagonal.mean(-1, keepdim=True).clamp_min(1e-12))
