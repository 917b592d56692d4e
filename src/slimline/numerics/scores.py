"""Class scores, whichever way a model gives them."""

from __future__ import annotations

import torch

LEAST = 1e-12  # probability whose logarithm is taken


def are_probabilities(scores: torch.Tensor) -> bool:
    """Whether all rows of ``[N, C, ...]`` are probabilities: none negative, with a sum of one over the classes.

    Example:
        >>> are_probabilities(torch.tensor([[0.25, 0.75]])), are_probabilities(torch.tensor([[0.25, 1.0]]))
        (True, False)
    """
    found = scores.detach().float()
    return bool((found >= 0).all()) and bool((found.sum(1) - 1).abs().max() < 1e-3)


def logits(scores: torch.Tensor, given: bool) -> torch.Tensor:
    """Scores whose softmax are the probabilities; ``given``: the scores are probabilities already, as after a last softmax, so their logarithm is meant.

    A softmax of probabilities is next to uniform: divergences and gradients taken of it say almost nothing.

    Example:
        >>> logits(torch.tensor([[0.25, 0.75]]), True).softmax(1)
        tensor([[0.2500, 0.7500]])
    """
    return scores.clamp_min(LEAST).log() if given else scores
