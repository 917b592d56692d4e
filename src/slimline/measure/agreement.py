"""How far two sets of outputs are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slimline.core.trial import Agreement
from slimline.numerics.changes import expected_changes, likely_drop


def agreement(outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], *, classes: bool = True, temperature: float | None = None) -> Agreement:
    """Over flat outputs ``[N, ...]``; ``top1`` from the first one if they are class scores (``classes``) ``[N, C]``: the largest element of an embedding says nothing.
    ``temperature``: of the reference's class scores, by which they become calibrated probabilities.

    Example:
        >>> a = torch.eye(3)
        >>> agreement([a], [a]).top1
        1.0
    """
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(outputs, reference, strict=True) if a.is_floating_point()]
    if not pairs:
        return Agreement(top1=None, cosine=1.0, max_abs=0.0)
    first, second = pairs[0]
    scores = classes and first.ndim == 2 and first.shape[1] > 1
    similar = [_cosine(a.flatten(1), b.flatten(1)) for a, b in pairs if a.ndim > 1]
    return Agreement(
        top1=float((first.argmax(1) == second.argmax(1)).double().mean()) if scores else None,
        cosine=float(sum(similar) / len(similar)) if similar else 1.0,
        max_abs=max(float((a - b).abs().max()) for a, b in pairs),
        likely_top1=1 - expected_changes(first, second) if scores else None,
        likely_drop=likely_drop(first, second, temperature) if scores and temperature is not None else None,
    )


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the rows; two rows of zeros are alike."""
    similar = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return torch.where((a == 0).all(1) & (b == 0).all(1), 1.0, similar).mean()
