"""What candidates lose of the original's quality, as far as the samples that show it are to be believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
