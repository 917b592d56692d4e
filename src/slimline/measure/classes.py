"""The drop of every class or slice, with limits that hold for all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slimline.core.result import GroupDrop
from slimline.measure.certify import drop_interval
from slimline.numerics.statistics import CONFIDENCE, mean_upper, paired_upper


@dataclass(frozen=True)
class ClassDrop:
    """What one class lost. ``lower``: with the given confidence no class lies below its own (Bonferroni). ``upper``: of this class alone."""

    label: int
    samples: int
    observed: float
    lower: float
    upper: float


def class_drops(baseline: torch.Tensor, compressed: torch.Tensor, labels: torch.Tensor, confidence: float = CONFIDENCE) -> tuple[ClassDrop, ...]:
    """Drops by class, from per-sample scores ``[N]`` in [0, 1] of the same samples and their ``labels`` ``[N]`` (integers).

    The two limits serve two claims. "Some class lost more than d" is made if any lower limit is beyond d, so the lower limits
    share the 5 % among the classes. "No class lost more than d" is made only if every upper limit is within d; it is false only if one
    given class lost more, whose own limit must fail, so none of these shares anything (an intersection-union test).

    Raises:
        DataError: scores that are not finite, or not as many for both.

    References:
        Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24, 1982 (intersection-union).
        Dunn, "Multiple comparisons among means", JASA 56, 1961 (Bonferroni).

    Example:
        >>> labels = torch.arange(400) % 2
        >>> worse = torch.ones(400)
        >>> worse[labels.eq(1).nonzero()[:40]] = 0
        >>> [(d.label, round(d.observed, 2), d.lower > 0.1) for d in class_drops(torch.ones(400), worse, labels)]
        [(0, 0.0, False), (1, 0.2, True)]
    """
    drop_interval(baseline, compressed, 0.0)  # the same checks, and the same complaints
    a, b, truth = (t.detach().cpu().numpy() for t in (baseline.double(), compressed.double(), labels))
    found = []
    present = np.unique(truth)
    shared = 1 - (1 - confidence) / len(present)
    exact = bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all())
    for label in present:
        x, y = a[truth == label], b[truth == label]
        found.append(ClassDrop(int(label), len(x), float((x - y).mean()), *_limits(x, y, exact, shared, confidence)))
    return tuple(found)


def slice_drops(
    baseline: torch.Tensor, compressed: torch.Tensor, slices: Mapping[str, Sequence[str]], *, most: int | None = None, confidence: float = CONFIDENCE
) -> tuple[GroupDrop, ...]:
    """The same of slices, the worst first: for each way of slicing, a label per sample. All slices of all ways share the 5 % of the lower limits.

    ``most``: how many are worked out; the others count in the sharing all the same.

    Example:
        >>> worse = torch.ones(400)
        >>> worse[:40] = 0
        >>> night = ["night" if i < 80 else "day" for i in range(400)]
        >>> [(d.label, d.samples, round(d.observed, 2), d.of) for d in slice_drops(torch.ones(400), worse, {"light": night})]
        [('light: night', 80, 0.5, 2), ('light: day', 320, 0.0, 2)]
    """
    drop_interval(baseline, compressed, 0.0)
    a, b = (t.detach().cpu().double().numpy() for t in (baseline, compressed))
    exact = bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all())
    groups: list[tuple[float, str, Any]] = []
    for name, labels in slices.items():
        given = np.array(list(labels), dtype=object)
        for label in dict.fromkeys(given.tolist()):
            held = given == label
            groups.append((float((a[held] - b[held]).mean()), f"{name}: {label}" if name else str(label), held))
    groups.sort(key=lambda g: -g[0])
    shared = 1 - (1 - confidence) / max(len(groups), 1)
    found = []
    for observed, label, held in groups[:most]:
        lower, upper = _limits(a[held], b[held], exact, shared, confidence)
        found.append(GroupDrop(label=label, samples=int(held.sum()), observed=observed, lower_95=lower, upper_95=upper, of=len(groups)))
    return tuple(found)


def _limits(x: Any, y: Any, exact: bool, shared: float, confidence: float) -> tuple[float, float]:
    """Of the mean of ``x - y``: the lower one at ``shared``, the upper one at ``confidence``. ``exact``: scores of 0 and 1."""
    if exact:
        lost, won = int((x > y).sum()), int((x < y).sum())
        return -paired_upper(won, lost, len(x), shared), paired_upper(lost, won, len(x), confidence)
    return -mean_upper(y - x, 1.0, confidence=shared), mean_upper(x - y, 1.0, confidence=confidence)
