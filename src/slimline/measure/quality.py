"""What counts as good: built-in metrics, and the default that fits the outputs and targets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

from slimline.errors import DataError, UsageError
from slimline.numerics.scores import are_probabilities

Scores = float | torch.Tensor
Metric = Callable[[Any, Any], Scores]


def first_tensor(outputs: Any) -> torch.Tensor:
    """The first floating-point tensor of an output pytree.

    Raises:
        DataError: there is none.
    """
    for leaf in _pytree.tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return leaf
    raise DataError(
        "The model's outputs hold no floating-point tensor.", hint="Return the logits (or any float tensor) from forward, and define metric(outputs, targets)."
    )


def _values(targets: Any) -> torch.Tensor:
    leaves = [t for t in _pytree.tree_leaves(targets) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    if not leaves:
        raise DataError(
            "The targets hold no floating-point tensor.", hint="Return (inputs, targets) from data(split), or give --metric top1 for class numbers."
        )
    return leaves[0]


def top1(outputs: Any, targets: Any) -> torch.Tensor:
    """Per-sample 1 or 0: the largest score is the target's. ``[N, C]`` against ``[N]``."""
    return (first_tensor(outputs).argmax(1) == _labels(targets)).float()


def top5(outputs: Any, targets: Any) -> torch.Tensor:
    """Per-sample 1 or 0: the target is among the five largest scores."""
    scores = first_tensor(outputs)
    best = scores.topk(min(5, scores.shape[1]), 1).indices
    return (best == _labels(targets)[:, None]).any(1).float()


def pixel_accuracy(outputs: Any, targets: Any) -> torch.Tensor:
    """Per-sample share of pixels whose class is right. ``[N, C, H, W]`` against ``[N, H, W]``."""
    return (first_tensor(outputs).argmax(1) == _labels(targets)).float().flatten(1).mean(1)


def cosine(outputs: Any, targets: Any) -> torch.Tensor:
    """Per-sample cosine similarity of the flattened outputs with the targets (or the original's outputs)."""
    a, b = (t.flatten(1).double() for t in (first_tensor(outputs), _values(targets)))
    return torch.nn.functional.cosine_similarity(a, b, dim=1).float()


def neg_mse(outputs: Any, targets: Any) -> torch.Tensor:
    """Per-sample negative mean squared error."""
    a, b = first_tensor(outputs), _values(targets)
    return -((a - b.reshape(a.shape)) ** 2).flatten(1).mean(1)


def _counts(outputs: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = first_tensor(outputs)
    classes = scores.shape[1]
    guess, truth = scores.argmax(1), _labels(targets)
    right = torch.bincount(truth[guess == truth], minlength=classes).float()
    return right, torch.bincount(guess, minlength=classes).float(), torch.bincount(truth, minlength=classes).float()


def precision(outputs: Any, targets: Any) -> float:
    """Macro precision over the classes that occur in the targets."""
    right, guessed, true = _counts(outputs, targets)
    return float((right / guessed.clamp_min(1))[true > 0].mean())


def recall(outputs: Any, targets: Any) -> float:
    """Macro recall over the classes that occur in the targets."""
    right, _, true = _counts(outputs, targets)
    return float((right / true.clamp_min(1))[true > 0].mean())


def f1(outputs: Any, targets: Any) -> float:
    """Macro F1 over the classes that occur in the targets."""
    right, guessed, true = _counts(outputs, targets)
    return float((2 * right / (guessed + true).clamp_min(1))[true > 0].mean())


def auroc(outputs: Any, targets: Any) -> float:
    """Area under the ROC curve: binary for ``[N]``, ``[N, 1]`` or ``[N, 2]``, else the mean of one against the rest. Ties count half."""
    scores, truth = first_tensor(outputs), _labels(targets)
    if scores.ndim == 1 or scores.shape[1] == 1:
        return _area(scores.reshape(-1), truth.reshape(-1) > 0)
    if scores.shape[1] == 2:
        return _area(scores[:, 1] - scores[:, 0], truth == 1)
    areas = [_area(scores[:, c], truth == c) for c in range(scores.shape[1]) if 0 < int((truth == c).sum()) < len(truth)]
    return float(sum(areas) / len(areas)) if areas else 0.5


def _area(scores: torch.Tensor, positive: torch.Tensor) -> float:
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(scores.numpy()))
    p, n = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / max(p * n, 1))


def _labels(targets: Any) -> torch.Tensor:
    leaves = [t for t in _pytree.tree_leaves(targets) if isinstance(t, torch.Tensor)]
    if not leaves:
        raise DataError("The targets hold no tensor of labels.", hint="Return (inputs, targets) from data(split), or define metric(outputs, targets).")
    return leaves[0]


METRICS: dict[str, Metric] = {
    "top1": top1,
    "top5": top5,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "auroc": auroc,
    "neg_mse": neg_mse,
    "cosine": cosine,
}


CLASSES = ("top1", "top5", "pixel_accuracy", "precision", "recall", "f1", "auroc")  # metrics that take outputs as class scores
OWN = "metric"  # what a task's own metric is called


def named(name: str) -> Metric:
    """A built-in metric.

    Raises:
        UsageError: no such name; the message lists them.
    """
    if name not in METRICS:
        raise UsageError(
            f"There is no built-in metric {name!r}.", hint=f"Choose one of {', '.join(METRICS)}, or define metric(outputs, targets) in the task file."
        )
    return functools.partial(_fitting, name)


def _fitting(name: str, outputs: Any, targets: Any) -> Scores:
    """The built-in metric, where outputs and targets are what it is for."""
    try:
        return METRICS[name](outputs, targets)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shown = " and ".join(f"{what} {_shapes(tree)}" for what, tree in (("outputs", outputs), ("targets", targets)))
        raise DataError(
            f"--metric {name} does not fit {shown}: {' '.join(str(error).split())[:200].rstrip('.')}.",
            hint="Give another, or define metric(outputs, targets) in the task file.",
        ) from error


def _shapes(tree: Any) -> str:
    return ", ".join(str(tuple(t.shape)) for t in _pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)) or type(tree).__name__


def default(outputs: Any, targets: Any) -> tuple[str, Metric]:
    """The metric that fits: name and function.

    Raises:
        DataError: nothing fits.
    """
    scores = first_tensor(outputs)
    if targets is None:
        return "cosine", cosine
    found = _by_labels(scores, targets)
    if found is not None:
        return found
    raise DataError(
        f"No default metric fits outputs {tuple(scores.shape)} and targets {_shapes(targets)}.",
        hint=f"Define metric(outputs, targets) in the task file, or give --metric with one of {', '.join(METRICS)}.",
    )


def _by_labels(scores: torch.Tensor, targets: Any) -> tuple[str, Metric] | None:
    """The metric of class scores against class numbers; ``None`` where the targets are something else."""
    leaves = [t for t in _pytree.tree_leaves(targets) if isinstance(t, torch.Tensor)]
    if len(leaves) != 1 or leaves[0].is_floating_point() or leaves[0].is_complex():
        return None
    labels = leaves[0]
    if scores.ndim == 2 and labels.ndim == 1:
        return "top1", top1
    if scores.ndim == 4 and labels.ndim == 3 and scores.shape[2:] == labels.shape[1:]:
        return "pixel_accuracy", pixel_accuracy
    return None


def are_class_scores(name: str, outputs: Any, targets: Any) -> bool:
    """Whether a task's outputs are class scores, which are compared by their distribution, and not values (embeddings, images), which are compared as they stand.

    They are if the metric ``name`` counts classes, if the targets of a metric of the task's own are class numbers, and if they are probabilities.

    Example:
        >>> vectors = torch.tensor([[0.6, -0.8], [1.0, 0.0]])
        >>> are_class_scores("cosine", vectors, None), are_class_scores("metric", vectors, torch.tensor([0, 1])), are_class_scores("cosine", vectors.softmax(1), None)
        (False, True, True)
    """
    scores = first_tensor(outputs)
    if name in CLASSES or (name == OWN and _by_labels(scores, targets) is not None):
        return True
    return scores.ndim in (2, 4) and scores.shape[1] > 1 and are_probabilities(scores)


def chosen(name: str, task: Any, outputs: Callable[[], Any], targets: Any) -> tuple[str, Metric]:
    """Name and function: the built-in metric ``name``, else the task's own, else the default for what ``outputs`` gives.

    ``task``: has a ``metric``, unless its ``has_metric`` is false. ``targets``: ``None`` where there are no labels.

    Raises:
        UsageError: no built-in metric of that name.
        DataError: nothing fits.
    """
    if name and name != OWN:
        return name, named(name)
    return (OWN, task.metric) if getattr(task, "has_metric", True) else default(outputs(), targets)


def evaluate(metric: Metric, outputs: Any, targets: Any) -> tuple[float, torch.Tensor | None]:
    """``(quality, per-sample scores [N] or None)``.

    Raises:
        DataError: the metric returned something else (a score for each class, say), or no finite number.
    """
    value = metric(outputs, targets)
    if isinstance(value, torch.Tensor) and value.ndim == 1:
        samples = next((len(t) for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)), len(value))
        if len(value) != samples:  # a paired test would take them for samples
            raise DataError(
                f"metric(outputs, targets) returned {len(value)} scores for {samples} samples.",
                hint="Return one score per sample [N], or one number for all: scores.mean().",
            )
        scores = value.detach().double()
        quality = float(scores.mean())
    elif isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        scores, quality = None, float(value)
    else:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise DataError(f"metric(outputs, targets) returned {what}.", hint="Return a float, or per-sample scores [N].")
    if not math.isfinite(quality):
        raise DataError(f"metric(outputs, targets) is {quality}.", hint="Check the targets, and the outputs for NaN and infinities.")
    return quality, scores
