"""Shared values by k-means, from the starts that the literature compares.

References:
    Han et al., "Deep Compression", ICLR 2016, section 3.2 (linear and density-based starts).
    Choi, El-Khamy and Lee, "Towards the Limit of Network Quantization", ICLR 2017, eq. 6 (Hessian-weighted k-means).
"""

from __future__ import annotations

from typing import Literal

import torch

from slimline.core.formats.codebook import lloyd, nearest

Init = Literal["linear", "density", "hessian"]


def centroids(x: torch.Tensor, k: int, init: Init = "linear", importance: torch.Tensor | None = None) -> torch.Tensor:
    """``k`` centroids of the values ``x`` ``[n]``, ascending.

    ``linear``: the start is equal steps from the least to the greatest; ``density``: equal shares of the values;
    ``hessian``: both, with each value weighted by ``importance`` ``[n]`` (the loss's curvature there), and the better one is taken.

    Example:
        >>> x = torch.tensor([0.0, 0.1, 5.0, 5.2])
        >>> [round(v, 2) for v in centroids(x, 2, "density").tolist()]
        [0.05, 5.1]
    """
    if not x.numel():
        return torch.zeros(k)
    starts = {"linear": torch.linspace(float(x.min()), float(x.max()), k), "density": _quantiles(x, k)}
    if init != "hessian":
        return lloyd(x, starts[init])
    weights = torch.ones_like(x) if importance is None or not bool((importance > 0).any()) else importance
    found = [lloyd(x, start, weights) for start in starts.values()]
    return min(found, key=lambda c: distortion(x, c, weights))


def distortion(x: torch.Tensor, entries: torch.Tensor, importance: torch.Tensor | None = None) -> float:
    """Weighted sum of squared distances to the nearest entry."""
    squares = (x - entries[nearest(x, entries)]).double() ** 2
    return float((squares if importance is None else squares * importance).sum())


def _quantiles(x: torch.Tensor, k: int) -> torch.Tensor:
    ordered = x.float().sort().values
    places = ((torch.arange(k) + 0.5) / k * len(ordered)).long().clamp(0, len(ordered) - 1)
    return ordered[places]
