"""How many bits weights take once they are entropy-coded, without coding them: what a search can afford to ask of every option.

An integer's code length depends on how large its row and its column let expect it to be, as in the archive, which learns the same
from what it coded before.

References:
    Shannon, "A Mathematical Theory of Communication", 1948.
    Rissanen, "Modeling by shortest data description", 1978 (half a logarithm of the number of observations for each learnt parameter).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

CLASSES = 12  # of expected magnitude, two to an octave
NARROW = 2**16  # of a span of integers: up to it they are counted as they are, without sorting them first


def magnitude_classes(values: torch.Tensor) -> torch.Tensor:
    """``[rows, columns]``, 0 .. 11: how large a value's row and column let it be expected, against the mean of all.

    Example:
        >>> magnitude_classes(torch.tensor([[8, 8], [0, 0]])).tolist()
        [[7, 7], [3, 3]]
    """
    size = values.abs().double()
    mean = size.mean().clamp_min(1e-9)
    row = (size.sum(1, keepdim=True) + mean) / (size.shape[1] + 1) / mean
    column = (size.sum(0, keepdim=True) + mean) / (size.shape[0] + 1) / mean
    return (2 * torch.log2(row * column) + CLASSES / 2).round().clamp(0, CLASSES - 1).long()


def code_lengths(values: torch.Tensor, classes: torch.Tensor, limit: int, spread: float = 0.3) -> torch.Tensor:
    """``[classes, 2 * limit + 1]``: bits of each integer ``-limit .. limit`` in each class, by the frequencies in ``values``, of which the share ``spread`` counts for neighbours."""
    alphabet = 2 * limit + 1
    counts = torch.bincount((classes * alphabet + values.long().clamp(-limit, limit) + limit).reshape(-1), minlength=CLASSES * alphabet)
    counts = counts.reshape(CLASSES, alphabet).double()
    counts = counts + counts.flip(1)  # no side is preferred
    kernel = torch.tensor([[[spread / 6, spread / 3, 1 - spread, spread / 3, spread / 6]]], dtype=torch.float64)
    smooth = torch.nn.functional.conv1d(counts[:, None], kernel, padding=2)[:, 0]
    everything = smooth.sum(0, keepdim=True)
    shares = smooth + 4 * everything / everything.sum().clamp_min(1e-9) + 1e-3
    return -torch.log2(shares / shares.sum(1, keepdim=True))


def bits_between(codes: torch.Tensor, classes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Bits of real ``codes``, of any shape, each with its class: between two integers linear in how far it is from the one to the other, so that there is a gradient.

    ``lengths``: as ``code_lengths`` gives them.

    References:
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, eq. 3 (the code length of what is trained is part of the loss).

    Example:
        >>> lengths = torch.tensor([[5.0, 1.0, 5.0]])
        >>> bits_between(torch.tensor([0.0, 0.5, -1.0]), torch.zeros(3, dtype=torch.long), lengths).tolist()
        [1.0, 3.0, 5.0]
    """
    limit = lengths.shape[1] // 2
    inside = codes.clamp(-limit, limit)
    low = inside.detach().floor().clamp_(max=limit - 1)
    at = classes * lengths.shape[1] + limit + low.long()
    table = lengths.reshape(-1)
    here = table.take(at)
    return here + (inside - low) * (table.take(at + 1) - here)


def integer_bits(values: torch.Tensor) -> float:
    """Bits of all of an integer tensor ``[rows, ...]`` under its own frequencies in each class, with what it takes to learn them.

    Example:
        >>> torch.manual_seed(0) and round(integer_bits(torch.randint(0, 2, (100, 100))) / 10_000, 1)
        1.0
    """
    if not values.numel():
        return 0.0
    flat = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)
    numbers = flat.long()
    numbers = numbers - numbers.min() if not (numbers < 0).any() else numbers
    low, high = numbers.aminmax()
    symbols = numbers - low if high - low < NARROW else torch.unique(numbers, return_inverse=True)[1]
    alphabet = int(symbols.max()) + 1
    classes = magnitude_classes(numbers)
    together = _adaptive(torch.bincount(symbols.reshape(-1), minlength=alphabet)[None])
    apart = _adaptive(torch.bincount((classes * alphabet + symbols).reshape(-1), minlength=CLASSES * alphabet).reshape(CLASSES, alphabet))
    return min(together, apart)


def _adaptive(counts: torch.Tensor) -> float:
    n = counts.double()
    total = n.sum(1)
    bits = torch.xlogy(total, total).sum() - torch.xlogy(n, n).sum()
    learning = 0.5 * ((n > 0).sum(1) - 1).clamp_min(0) * torch.log2(total + 1)
    return float(bits / torch.log(torch.tensor(2.0)) + learning.sum())


def float_bits(values: torch.Tensor) -> float:
    """Bits of float32 numbers: their exponents' entropy, and that of each bit of sign and mantissa."""
    pattern = values.detach().float().reshape(-1).view(torch.int32).long() & 0xFFFFFFFF
    if not pattern.numel():
        return 0.0
    bits = _adaptive(torch.bincount((pattern >> 23) & 255, minlength=256)[None])
    for place in (*range(23), 31):
        ones = int(((pattern >> place) & 1).sum())
        bits += _adaptive(torch.tensor([[ones, pattern.numel() - ones]]))
    return bits


def coded_bytes(parts: Mapping[str, torch.Tensor]) -> float:
    """Bytes of an encoded weight's parts in an archive."""
    return sum(float_bits(t) if t.is_floating_point() else integer_bits(t) for t in parts.values()) / 8
