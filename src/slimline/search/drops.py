"""What candidates lose of the original's quality, as far as the samples that show it are to be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from slimline.core.trial import Agreement, Trial
from slimline.numerics.changes import believed, lost_per_change

Drop = Callable[[float, Agreement | None], float]


def usual_loss(trials: Sequence[Trial], base: float, samples: int) -> float:
    """What is lost of the quality ``base`` with each changed answer."""
    return lost_per_change((c for t in trials if (c := t.changes(base)) is not None), samples)


def believed_drops(trials: Sequence[Trial], base: float, samples: int | None, allowed: float) -> Drop:
    """``drop(quality, fidelity)`` from the quality ``base``, as seen on so many samples; where chance alone moves it by more than ``allowed``, as changed answers let expect.

    ``samples`` are unknown (``None``), or quality does not count top-1 answers: as seen. What is usually lost with a changed answer is learned from ``trials``.
    """
    per_change = usual_loss(trials, base, samples or 0)

    def drop(quality: float, fidelity: Agreement | None) -> float:
        alike = fidelity.likely_top1 if fidelity is not None else None
        return base - quality if alike is None or samples is None else believed(base - quality, 1 - alike, per_change, samples, allowed)

    return drop


def believed_by_size(sizes: Sequence[float], drops: Sequence[float], variances: Sequence[float]) -> list[float]:
    """What each of many models lost, where each was seen on a few samples and larger ones tend to have lost less: the best of many noisy drops is too good to be true.

    The drops that never rise as models grow and lie nearest to those seen; from there each goes towards its own by as much as the ``variances`` of those seen leave unexplained.

    References:
        Barlow et al., "Statistical Inference under Order Restrictions", 1972 (isotonic regression).
        Efron and Morris, "Data Analysis Using Stein's Estimator and its Generalizations", 1975 (how far each goes).

    Example:
        >>> believed_by_size([2.4, 2.6, 9.8], [0.0002, 0.0018, 0.0012], [2e-6, 2e-6, 2e-6])
        [0.001066667, 0.001066667, 0.001066667]
    """
    order = np.argsort(np.asarray(sizes), kind="stable")
    seen, noise = np.asarray(drops, float)[order], np.asarray(variances, float)[order]
    fitted = np.asarray(isotonic_regression(seen, weights=1 / np.maximum(noise, 1e-12), increasing=False).x)
    real = max(0.0, float(np.mean((seen - fitted) ** 2 - noise)))
    found = np.empty(len(seen))
    found[order] = fitted + real / (real + noise + 1e-18) * (seen - fitted)
    return [round(float(d), 9) for d in found]
