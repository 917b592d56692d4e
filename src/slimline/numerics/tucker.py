"""Tucker-2 and CP factors of convolutions, plain and with the layer's inputs in mind; and ranks from the spectrum.

A convolution ``[out, in, kh, kw]`` becomes three: ``1 x 1`` into few channels, the kernel among them, ``1 x 1`` out. The first comes
from the kernel weighted by the covariance of the input channels; the rest is then the least-squares solution for the layer's *outputs*,
``E|W x - W' x|²``, under the second moments ``M = E[x xᵀ]`` of its unfolded input (the identity where none are known).

References:
    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016, sections 3.1 and 3.2 (Tucker-2, VBMF).
    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015 (here with both kernel dimensions in one factor).
    De Lathauwer, De Moor and Vandewalle, "A multilinear singular value decomposition", SIAM J. Matrix Anal. Appl. 2000, property 10 (error by the tails).
    Kolda and Bader, "Tensor Decompositions and Applications", SIAM Review 2009, figure 3.3 (alternating least squares).
    Nakajima et al., "Global Analytic Solution of Fully-observed Variational Bayesian Matrix Factorization", JMLR 2013, theorem 4 and corollary 3.
"""

from __future__ import annotations

import math

import torch

RIDGE = 1e-4  # of the mean energy: keeps a solution where its inputs say nothing
FLOOR = 1e-4  # of the mean variance of the input channels
SWEEPS = 40  # of alternating least squares
WORK = 2e10  # multiply-adds that all sweeps may take together

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tucker2(weight: torch.Tensor, ranks: tuple[int, int], moment: torch.Tensor | None = None) -> Triple:
    """``(first [r_in, in, 1, 1], core [r_out, r_in, kh, kw], last [out, r_out, 1, 1])`` for ``ranks = (r_out, r_in)``.

    ``moment``: of the unfolded input in the order of ``weight.flatten(1)``: ``[J, J]``, or its diagonal blocks ``[in, K, K]``.
    Given ``first``, the other two are the best of their rank (reduced-rank regression).

    Example:
        >>> w = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        >>> first, core, last = tucker2(w, (6, 4))
        >>> bool(torch.allclose(torch.einsum("or,rskl,si->oikl", last[..., 0, 0], core, first[..., 0, 0]), w, atol=1e-3))
        True
    """
    kh, kw = weight.shape[2:]
    r_out, r_in = ranks
    w = weight.detach().double().flatten(2)
    root, inverse = _channel_roots(w, moment)
    u, _, _ = torch.linalg.svd(torch.einsum("oik,ij->jok", w, root).flatten(1), full_matrices=False)
    first = u[:, :r_in].T @ inverse
    first = first / first.norm(dim=1, keepdim=True).clamp_min(1e-12)
    gram, cross = _projected(w, first, moment)
    best = _solve(gram, cross)  # [out, r_in K]: the best that reads what the first lets through
    values, vectors = torch.linalg.eigh(best @ gram @ best.T)
    last = vectors[:, values.argsort(descending=True)[:r_out]]
    core = last.T @ best
    scale = core.norm(dim=1).clamp_min(1e-12).sqrt()
    core, last = core / scale[:, None], last * scale
    return tuple(t.to(weight.dtype) for t in (first[..., None, None], core.reshape(r_out, r_in, kh, kw), last[..., None, None]))


def cp(weight: torch.Tensor, rank: int, moment: torch.Tensor | None = None) -> Triple:
    """``(first [rank, in, 1, 1], middle [rank, 1, kh, kw], last [out, rank, 1, 1])``: the middle one is depthwise.

    The factors of the weighted kernel come from alternating least squares from a fixed start, ``last`` is then solved for the outputs.
    """
    channels, kh, kw = weight.shape[1:]
    w = weight.detach().double().flatten(2)
    root, inverse = _channel_roots(w, moment)
    t = torch.einsum("oik,ij->ojk", w, root)
    draw = torch.Generator().manual_seed(0)
    a, b, c = (_start(t.movedim(mode, 0).flatten(1), rank, draw) for mode in range(3))
    for _ in range(max(4, min(SWEEPS, int(WORK / (3 * t.numel() * rank))))):
        a = _solve((b.T @ b) * (c.T @ c), torch.einsum("oik,ir,kr->or", t, b, c))
        b = _solve((a.T @ a) * (c.T @ c), torch.einsum("oik,or,kr->ir", t, a, c))
        c = _solve((a.T @ a) * (b.T @ b), torch.einsum("oik,or,ir->kr", t, a, b))
    first = b.T @ inverse
    first = first / first.norm(dim=1, keepdim=True).clamp_min(1e-12)
    middle = c.T / c.norm(dim=0)[:, None].clamp_min(1e-12)
    reading = torch.einsum("ri,rk->rik", first, middle).flatten(1)  # what the first two make of the unfolded input
    weighted = _times(reading, moment, channels)
    last = _solve(weighted @ reading.T, w.flatten(1) @ weighted.T)
    scale = last.norm(dim=0).clamp_min(1e-12).sqrt()
    last, middle = last / scale, middle * scale[:, None]
    return tuple(t.to(weight.dtype) for t in (first[..., None, None], middle.reshape(rank, 1, kh, kw), last[..., None, None]))


def spectra(weight: torch.Tensor, moment: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Energies along the outputs ``[out]`` and the inputs ``[in]``, falling: what a rank leaves out is the sum of the rest."""
    w = weight.detach().double().flatten(2)
    root, _ = _channel_roots(w, moment)
    t = torch.einsum("oik,ij->ojk", w, root)
    outputs = w.flatten(1) @ _times(w.flatten(1), moment, w.shape[1]).T
    return torch.linalg.eigvalsh(outputs).flip(0).clamp_min(0), torch.linalg.eigvalsh(torch.einsum("oik,ojk->ij", t, t)).flip(0).clamp_min(0)


def ranks_for(shape: tuple[int, ...], energies: tuple[torch.Tensor, torch.Tensor], share: float, step: int = 4) -> tuple[int, int] | None:
    """``(r_out, r_in)``, multiples of ``step``, that leave out the least energy with at most ``share`` of the weight's elements; ``None`` if there are none."""
    tails = [torch.cat([e.flip(0).cumsum(0).flip(0), e.new_zeros(1)]) / e.sum().clamp_min(1e-300) for e in energies]
    best: tuple[float, tuple[int, int]] | None = None
    for r_in in range(step, shape[1] + 1, step):
        room = share * math.prod(shape) - r_in * shape[1]
        r_out = min(int(room / (r_in * math.prod(shape[2:]) + shape[0])), shape[0]) // step * step
        if r_out >= step:
            lost = float(tails[0][r_out] + tails[1][r_in])
            if best is None or lost < best[0]:
                best = (lost, (r_out, r_in))
    return best[1] if best is not None else None


def vbmf_rank(matrix: torch.Tensor) -> int:
    """How many singular values of ``matrix`` stand out of its noise, whose variance is estimated with them: empirical variational Bayes.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> signal = torch.randn(40, 3, generator=draw) @ torch.randn(3, 60, generator=draw)
        >>> vbmf_rank(signal + 0.1 * torch.randn(40, 60, generator=draw))
        3
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    rows, columns = sorted(matrix.shape)
    s = torch.linalg.svdvals(matrix.detach().double()).numpy()
    alpha = rows / columns
    edge = 2.5129 * math.sqrt(alpha)
    bound = (1 + edge) * (1 + alpha / edge)

    def free_energy(variance: float) -> float:
        x = s**2 / (columns * variance)
        high, low = x[x > bound], np.maximum(x[x <= bound], 1e-300)
        tau = 0.5 * (high - (1 + alpha) + np.sqrt((high - (1 + alpha)) ** 2 - 4 * alpha))
        return float((low - np.log(low)).sum() + (high - tau).sum() + np.log((tau + 1) / high).sum() + alpha * np.log(tau / alpha + 1).sum())

    most = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)
    least = max(s[most] ** 2 / (columns * bound), float((s[most:] ** 2).mean()) / columns, 1e-300)
    highest = float((s**2).sum()) / (rows * columns)
    variance = minimize_scalar(free_energy, bounds=(least, max(highest, least * (1 + 1e-9))), method="bounded").x
    return int((s > math.sqrt(columns * variance * bound)).sum())


def _start(unfolded: torch.Tensor, rank: int, draw: torch.Generator) -> torch.Tensor:
    """Leading left singular vectors, filled up at random where the rank is larger."""
    u, _, _ = torch.linalg.svd(unfolded, full_matrices=False)
    u = u[:, :rank]
    return torch.cat([u, torch.randn(len(u), rank - u.shape[1], generator=draw, dtype=u.dtype)], 1)


def _solve(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """``cross gram^-1``, damped."""
    damped = gram + torch.eye(len(gram), dtype=gram.dtype) * (RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    found: torch.Tensor = torch.linalg.solve(damped, cross.T).T
    return found


def _channel_roots(weight: torch.Tensor, moment: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric root of the input channels' second moments, averaged over the kernel, and its inverse: ``[in, in]`` each."""
    channels, kernel = weight.shape[1:]
    if moment is None:
        identity = torch.eye(channels, dtype=weight.dtype)
        return identity, identity
    m = moment.double()
    if m.ndim == 3:
        covariance = torch.diag(m.diagonal(dim1=1, dim2=2).mean(1))
    else:
        covariance = m.reshape(channels, kernel, channels, kernel).diagonal(dim1=1, dim2=3).mean(-1)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(FLOOR * float(values.mean().clamp_min(1e-12))).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def _times(matrix: torch.Tensor, moment: torch.Tensor | None, channels: int) -> torch.Tensor:
    """``matrix [rows, J]`` times the moments ``[J, J]``, the identity where there are none."""
    if moment is None:
        return matrix
    m = moment.double()
    if m.ndim == 2:
        return matrix @ m
    product: torch.Tensor = torch.einsum("rik,ikl->ril", matrix.reshape(len(matrix), channels, -1), m)
    return product.flatten(1)


def _projected(weight: torch.Tensor, first: torch.Tensor, moment: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """With ``z`` the input after ``first``: ``E[z zᵀ] [r K, r K]`` and ``E[y zᵀ] [out, r K]``."""
    channels, kernel = weight.shape[1:]
    reading = torch.einsum("ri,kl->rkil", first, torch.eye(kernel, dtype=first.dtype)).reshape(len(first) * kernel, channels * kernel)
    weighted = _times(reading, moment, channels)
    return weighted @ reading.T, weight.flatten(1) @ weighted.T
