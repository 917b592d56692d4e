"""How much of the original's answers is lost: one number that options and candidates are ranked by."""

from __future__ import annotations

import torch

from slimline.numerics.scores import are_probabilities, logits


def divergence(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How much was lost against the original, a scalar: KL(original, compressed) for class scores ``[N, C]`` (or their probabilities), else the squared error relative to the original's energy."""
    if reference.ndim == 2 and reference.shape[1] > 1:
        given = are_probabilities(reference)
        a, b = (logits(t.float(), given).log_softmax(1) for t in (outputs, reference))
        return torch.nn.functional.kl_div(a, b, log_target=True, reduction="batchmean")
    return ((outputs.float() - reference.float()) ** 2).mean() / (reference.float() ** 2).mean().clamp_min(1e-12)
