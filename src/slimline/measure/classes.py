"""The drop of every class, with limits that hold for all of them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

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
        n = len(x)
        if exact:
            lost, won = int((x > y).sum()), int((x < y).sum())
            lower, upper = -paired_upper(won, lost, n, shared), paired_upper(lost, won, n, confidence)
        else:
            lower, upper = -mean_upper(y - x, 1.0, confidence=shared), mean_upper(x - y, 1.0, confidence=confidence)
        found.append(ClassDrop(int(label), n, float((x - y).mean()), lower, upper))
    return tuple(found)
