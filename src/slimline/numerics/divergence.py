"""How much of the original's answers is lost: what options and candidates are ranked by, training minimises, and gradients are taken of.

The one home of what two outputs are compared by. ``classes`` (``measure.quality.are_class_scores`` decides it, once per job)
says whether they are class scores, of which only the distribution matters, or values, such as embeddings, as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils import _pytree

from slimline.numerics.scores import are_probabilities, logits

TEMPERATURE = 2.0
LEAST_ENERGY = 1e-12


def divergence(outputs: torch.Tensor, reference: torch.Tensor, *, classes: bool) -> torch.Tensor:
    """How much was lost against the original, a scalar.

    KL(original, compressed) in nats for class scores ``[N, C]`` or ``[N, C, H, W]`` (or their probabilities), the mean over samples and
    pixels; else the squared error relative to the original's energy, ``||y - y0||² / ||y0||²``.
    """
    if classes and _over_classes(reference):
        return _kl(outputs.float(), reference.float(), 1.0)
    return relative_error(outputs, reference)


def mean_divergence(outputs: Sequence[Any], reference: Sequence[Any], *, classes: bool) -> torch.Tensor:
    """The mean over all floating-point tensors of flat outputs; a scalar."""
    return torch.stack([divergence(a, b, classes=classes) for a, b in zip(outputs, reference, strict=True) if _is_float(a)]).mean()


def relative_error(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``||y - y0||² / ||y0||²``, a scalar.

    Example:
        >>> round(float(relative_error(torch.tensor([1.1, 2.2]), torch.tensor([1.0, 2.0]))), 4)
        0.01
    """
    return ((outputs.float() - reference.float()) ** 2).mean() / (reference.float() ** 2).mean().clamp_min(LEAST_ENERGY)


def distillation_loss(outputs: Any, answers: Any, *, classes: bool) -> torch.Tensor:
    """What training minimises, summed over an output pytree: cross-entropy of softened class scores or probabilities (times T², minus the teacher's entropy), else the relative squared error.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    total = torch.zeros(())
    for a, b in zip(_pytree.tree_leaves(outputs), _pytree.tree_leaves(answers), strict=True):
        if _is_float(a):
            total = total + (_kl(a.float(), b.float(), TEMPERATURE) if classes and _over_classes(b) else relative_error(a, b))
    return total


def own_divergence(outputs: Any, draw: torch.Generator, *, classes: bool) -> torch.Tensor:
    """A scalar whose squared gradients say how the outputs' own distribution reacts: of labels drawn from class scores ``[N, C]``, else of a random projection.

    References:
        Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 2020, sections 5 and 9.
    """
    leaves = [t for t in _pytree.tree_leaves(outputs) if _is_float(t)]
    if classes and len(leaves) == 1 and leaves[0].ndim == 2 and _over_classes(leaves[0]):
        scores = logits(leaves[0].float(), are_probabilities(leaves[0]))
        labels = torch.multinomial(scores.detach().softmax(1), 1, generator=draw)[:, 0]
        return functional.cross_entropy(scores, labels)
    projected = [(t * torch.randn(t.shape, generator=draw)).sum() / max(len(t), 1) for t in leaves]
    return torch.stack(projected).sum()


def _over_classes(reference: torch.Tensor) -> bool:
    return reference.ndim in (2, 4) and reference.shape[1] > 1


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _kl(outputs: torch.Tensor, reference: torch.Tensor, temperature: float) -> torch.Tensor:
    given = are_probabilities(reference)
    a, b = ((logits(t, given) / temperature).log_softmax(1) for t in (outputs, reference))
    return functional.kl_div(a, b, log_target=True, reduction="none").sum(1).mean() * temperature**2
