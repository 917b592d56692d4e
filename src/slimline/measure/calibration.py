"""Whether a classifier is as sure as it is right."""

from __future__ import annotations

import torch

BINS = 15


def calibration_error(scores: torch.Tensor, labels: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error of class scores ``[N, C]`` (logits, or probabilities where all rows are some) against ``labels`` ``[N]``.

    The mean distance of confidence and accuracy over equal bins of confidence, each weighted by its samples.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.

    Example:
        Sure to 90 % and right in nine of ten cases:

        >>> p = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
        >>> abs(round(calibration_error(p, torch.tensor([0] * 9 + [1])), 4))
        0.0
    """
    scores = scores.detach().double()
    already = bool((scores >= 0).all()) and bool(torch.isclose(scores.sum(1), torch.ones((), dtype=torch.float64), atol=1e-4).all())
    confidence, guess = (scores if already else scores.softmax(1)).max(1)
    right = (guess == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins).double()
    gap = torch.bincount(place, right - confidence, minlength=bins).abs()
    return float(gap[count > 0].sum() / len(labels))
