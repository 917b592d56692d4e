"""What compression changed for single samples, classes and slices, for the model's certainty, and under mild disturbances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from slimline.core.result import CloseUp, Disturbed, GroupDrop
from slimline.core.samples import Samples
from slimline.measure.calibration import calibration_error
from slimline.measure.classes import slice_drops
from slimline.measure.corruptions import corruptions
from slimline.measure.quality import Metric, evaluate

Both = Callable[[Samples], tuple[Any, Any]]
"""The original's and the artefact's outputs."""
LABELLED = 50  # classes, or slices, whose limits are worked out: those that lost most


def close_up(
    metric: Metric, original: Any, compressed: Any, targets: Any, slices: Mapping[str, Sequence[str]], positions: torch.Tensor | None = None
) -> CloseUp:
    """From the outputs of both on the same samples.

    ``targets``: what the metric takes. ``slices``: a label per sample for each way of slicing. ``positions``: ``[N]``, the samples' indices where
    they are a part of the user's split.

    Example:
        >>> right, wrong = torch.eye(3), torch.eye(3).roll(1, 0)
        >>> from slimline.measure.quality import top1
        >>> close_up(top1, right, torch.cat([right[:2], wrong[2:]]), torch.arange(3), {}).lost
        (2,)
    """
    (before, a), (after, b) = (evaluate(metric, o, targets) for o in (original, compressed))
    places = positions if positions is not None else torch.arange(0 if a is None else len(a))
    lost: tuple[int, ...] = ()
    won: tuple[int, ...] = ()
    classes: tuple[GroupDrop, ...] = ()
    sliced: tuple[GroupDrop, ...] = ()
    if a is not None and b is not None:
        both = torch.cat([a, b])
        if set(both.unique().tolist()) <= {0.0, 1.0}:
            lost, won = (tuple(places[m].tolist()) for m in (a > b, b > a))
        if float(both.min()) >= 0 and float(both.max()) <= 1:
            sliced = slice_drops(a, b, slices, most=LABELLED)
            if isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point():
                classes = slice_drops(a, b, {"": [str(t) for t in targets.tolist()]}, most=LABELLED)
    return CloseUp(
        samples=len(places) if a is not None else _count(original), before=before, after=after, lost=lost, won=won, classes=classes, slices=sliced,
        calibration=calibration(original, compressed, targets),
    )  # fmt: skip


def calibration(original: Any, compressed: Any, labels: Any) -> tuple[float, float] | None:
    """Expected calibration error of both; ``None`` unless outputs are class scores ``[N, C]`` and targets labels ``[N]``."""
    if not (isinstance(original, torch.Tensor) and isinstance(compressed, torch.Tensor) and isinstance(labels, torch.Tensor)):
        return None
    if original.ndim != 2 or original.shape[1] < 2 or labels.ndim != 1 or labels.is_floating_point():
        return None
    return calibration_error(original, labels), calibration_error(compressed, labels)


def disturbed(both: Both, metric: Metric, samples: Samples, over: Callable[[], bool] = lambda: False) -> tuple[Disturbed, ...]:
    """Qualities of both, first undisturbed (the name is empty), then under each disturbance; ``over``: whether to stop here.

    Without targets each disturbed pair is held against the original's undisturbed outputs.
    """
    found: list[Disturbed] = []
    original, compressed = both(samples)
    truth = samples.targets if samples.targets is not None else original
    pairs = [("", original, compressed)]
    for name, change in corruptions(samples.tensors[0]).items():
        if over():
            break
        pairs.append((name, *both(samples.map(lambda t, change=change: change(t) if _like(t, samples) else t))))  # type: ignore[misc]
    for name, one, other in pairs:
        found.append(Disturbed(name=name, before=evaluate(metric, one, truth)[0], after=evaluate(metric, other, truth)[0], samples=len(samples)))
    return tuple(found) if len(found) > 1 else ()


def _like(tensor: torch.Tensor, samples: Samples) -> bool:
    """Whether an input is of the first one's kind: a mask beside an image stays as it is."""
    return tensor.is_floating_point() and tensor.ndim == samples.tensors[0].ndim


def _count(outputs: Any) -> int:
    from torch.utils import _pytree

    return next((len(t) for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)), 0)
