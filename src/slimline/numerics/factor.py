"""Low-rank factors of weights: plain, and with the layer's inputs in mind.

Plain factors minimise ``|W - W'|²``; given the second moments ``M = E[x xᵀ]`` of the layer's input they
minimise what the output loses, ``E|(W - W') x|² = tr((W - W') M (W - W')ᵀ)``, which is far less
where inputs are correlated. Factors are balanced: both carry the square roots of the singular values, so that
neither is harder to quantize or to train than the other.

References:
    Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition", ICLR 2025, section 3.1 (whitening by the inputs).
    Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, section 2.2, scheme 2.
    Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016, section 3.1.
"""

from __future__ import annotations

import torch

FLOOR = 1e-4  # of the mean input energy: directions below it were hardly seen in calibration, and count as if they had this much
RIDGE = 1e-4  # of the mean energy: keeps a refit where its inputs say nothing

Pair = tuple[torch.Tensor, torch.Tensor]


def svd(weight: torch.Tensor, rank: int) -> Pair:
    """``(left [out, rank], right [rank, in])`` whose product is the nearest matrix of that rank to ``weight [out, in]``.

    Example:
        >>> left, right = svd(torch.tensor([[2.0, 4.0], [1.0, 2.0]]), 1)
        >>> (left @ right).round(decimals=4).tolist()
        [[2.0, 4.0], [1.0, 2.0]]
    """
    u, s, v = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * v[:rank]).to(weight.dtype)


def svd_error(weight: torch.Tensor, rank: int) -> float:
    """``|W - W'|² / |W|²`` of the best ``W'`` of that rank: the tail of the squared singular values (Eckart and Young).

    Example:
        >>> round(svd_error(torch.diag(torch.tensor([2.0, 1.0])), 1), 6)
        0.2
    """
    energy = torch.linalg.svdvals(weight.detach().double()).square()
    return float(energy[rank:].sum() / energy.sum().clamp_min(1e-300))


def weighted_svd(weight: torch.Tensor, moment: torch.Tensor, rank: int) -> Pair:
    """``(left [out, rank], right [rank, in])`` that minimise ``tr((W - left right) M (W - left right)ᵀ)``.

    ``moment``: ``[in, in]``, or its diagonal blocks ``[blocks, in / blocks, in / blocks]``. With the root
    ``S S = M`` this is the SVD of ``W S``, the right factor multiplied by the inverse of ``S``.

    Example:
        >>> w, m = torch.eye(2), torch.diag(torch.tensor([1.0, 9.0]))   # the second input matters most
        >>> left, right = weighted_svd(w, m, 1)
        >>> (left @ right).round(decimals=4).abs().tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    root, inverse = _roots(moment)
    u, s, v = torch.linalg.svd(_times_blocks(weight.detach().double(), root), full_matrices=False)
    scale = s[:rank].sqrt()
    left, right = u[:, :rank] * scale, _times_blocks(scale[:, None] * v[:rank], inverse)
    return left.to(weight.dtype), right.to(weight.dtype)


def channel(weight: torch.Tensor, rank: int, moment: torch.Tensor | None = None) -> Pair:
    """A convolution ``[out, in, kh, kw]`` as one with ``rank`` outputs ``[rank, in, kh, kw]``, then a ``1 x 1``: ``[out, rank, 1, 1]``.

    ``moment``: of the unfolded input in the order of ``weight.flatten(1)``, as in ``weighted_svd``.

    References:
        Zhang et al. 2016, section 3.1.
    """
    flat = weight.flatten(1)
    left, right = svd(flat, rank) if moment is None else weighted_svd(flat, moment, rank)
    return right.reshape(-1, *weight.shape[1:]), left[:, :, None, None]


def spatial(weight: torch.Tensor, rank: int, moment: torch.Tensor | None = None) -> Pair:
    """A convolution ``[out, in, kh, kw]`` as a vertical one ``[rank, in, kh, 1]``, then a horizontal one ``[out, rank, 1, kw]``.

    Without ``moment`` it is the nearest pair: the SVD of ``W`` as a matrix ``[out kw, in kh]``. With it
    (in the order of ``weight.flatten(1)``, or diagonal blocks ``[in, kh kw, kh kw]``) the vertical factor comes from
    the SVD weighted by the moments averaged over the kernel's columns, and the horizontal one is the exact
    least-squares solution for the outputs, given the vertical.

    References:
        Jaderberg et al. 2014, section 2.2, scheme 2, and section 2.3.2 (data reconstruction).
    """
    out, channels, kh, kw = weight.shape
    matrix = weight.detach().permute(0, 3, 1, 2).reshape(out * kw, channels * kh)
    if moment is None:
        left, right = svd(matrix, rank)
        return right.reshape(-1, channels, kh, 1), _horizontal(left, out, kw)
    m = moment.double()
    if m.ndim == 3:
        along = m.reshape(channels, kh, kw, kh, kw).diagonal(dim1=2, dim2=4).mean(-1)
    else:
        along = m.reshape(channels, kh, kw, channels, kh, kw).diagonal(dim1=2, dim2=5).mean(-1).reshape(channels * kh, channels * kh)
    left, right = weighted_svd(matrix.double(), along, rank)
    vertical, horizontal = right.reshape(-1, channels, kh, 1), _horizontal(left, out, kw)
    return vertical.to(weight.dtype), _refit(weight.detach().double(), vertical, horizontal, m).to(weight.dtype)


def _horizontal(left: torch.Tensor, out: int, kw: int) -> torch.Tensor:
    """``[out kw, rank]`` -> ``[out, rank, 1, kw]``."""
    return left.reshape(out, kw, -1).transpose(1, 2).unsqueeze(2).contiguous()


def _refit(weight: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """The horizontal factor that makes up for the vertical one as well as it can: ridge regression towards the given one.

    With ``z = A x`` the vertical factor's outputs under the kernel, the moments are ``E[z zᵀ] = A M Aᵀ``
    and ``E[y zᵀ] = W M Aᵀ``.
    """
    out, channels, kh, kw = weight.shape
    v = vertical[..., 0]
    if moment.ndim == 3:
        am = torch.einsum("riy,iyxvw->rxivw", v, moment.reshape(channels, kh, kw, kh, kw))
    else:
        am = torch.einsum("riy,iyxjvw->rxjvw", v, moment.reshape(channels, kh, kw, channels, kh, kw))
    size = v.shape[0] * kw
    gram = torch.einsum("rxjvw,sjv->rxsw", am, v).reshape(size, size)
    cross = torch.einsum("ojvw,rxjvw->orx", weight, am).reshape(out, size)
    before = horizontal.reshape(out, size)
    damped = gram + torch.eye(size, dtype=gram.dtype) * (RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    change: torch.Tensor = torch.linalg.solve(damped, (cross - before @ gram).T).T
    return (before + change).reshape(horizontal.shape)


def _roots(moment: torch.Tensor) -> Pair:
    """Symmetric square root and its inverse, block by block: ``[blocks, width, width]`` each."""
    m = moment.double()
    values, vectors = torch.linalg.eigh(m if m.ndim == 3 else m[None])
    values = values.clamp_min(FLOOR * float(values.mean().clamp_min(1e-12))).sqrt()
    turned = vectors.transpose(-1, -2)
    return vectors @ (values[..., None] * turned), vectors @ (turned / values[..., None])


def _times_blocks(matrix: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """``matrix [rows, blocks width]`` times a block-diagonal matrix."""
    cut = matrix.reshape(len(matrix), len(blocks), -1)
    product: torch.Tensor = torch.einsum("obw,bwv->obv", cut, blocks)
    return product.reshape(matrix.shape)
