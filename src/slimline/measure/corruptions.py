"""Mild disturbances of inputs, to see whether compression made a model more sensitive to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

NOISE = 0.1  # of the inputs' standard deviation
CONTRAST = 0.7  # of the original's


def corruptions(example: torch.Tensor, seed: int = 0) -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Name -> function of an input ``[N, ...]``: noise for any floats; blur and contrast for images ``[N, C, H, W]``. None for integers.

    References:
        Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019: three of
        its kinds, milder than its first severity.

    Example:
        >>> sorted(corruptions(torch.rand(2, 3, 8, 8)))
        ['blur', 'contrast', 'noise']
    """
    if not example.is_floating_point():
        return {}
    found: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "noise": lambda x: x + NOISE * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    }
    if example.ndim == 4 and min(example.shape[2:]) > 2:
        found |= {"blur": _blur, "contrast": _contrast}
    return found


def _blur(x: torch.Tensor) -> torch.Tensor:
    """A binomial 3 x 3 kernel; edges are repeated."""
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = (line[:, None] * line[None, :]).expand(x.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def _contrast(x: torch.Tensor) -> torch.Tensor:
    """Nearer to each image's own mean."""
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + CONTRAST * (x - middle)
