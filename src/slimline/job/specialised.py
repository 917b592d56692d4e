"""A plan for what one user's device sees, classes or weighted samples: search, training and certificate see that alone, and what it costs elsewhere is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn

from slimline.core.result import ClassLoss, Elsewhere
from slimline.core.samples import Samples
from slimline.errors import DataError
from slimline.job.certificate import Outcome
from slimline.job.context import Job, Source, as_outputs
from slimline.job.found import Found, timed
from slimline.measure.certify import bootstrap_interval, drop_interval
from slimline.measure.classes import class_drops
from slimline.sources.splits import SPLIT_SEED, Origin

SHOWN = 20  # classes that lost most


def specialised(source: Source, classes: Sequence[int]) -> Source:
    """``source`` for ``classes`` alone, if there are some, and as its own ``sample_weights`` weigh it, if it has them.

    Example:
        >>> class Plain: ...
        >>> plain = Plain()
        >>> specialised(plain, ()) is plain
        True
    """
    return Specialised(source, classes) if classes or getattr(source, "has_sample_weights", False) else source


class Specialised:
    """A source whose samples are those of ``classes`` (of all, if there are none), drawn by their weights; the model keeps all its outputs.

    A sample with the weight w stays with the chance w / (the largest weight): what stays is drawn, sample by sample and independently, from the weighted
    distribution, so that every test holds for it as it stands. The draw is seeded: the same samples in every run.

    Raises:
        DataError: (by ``data``) the targets are no labels, a split has no sample of one of the classes, or none is left.

    References:
        von Neumann, "Various techniques used in connection with random digits", 1951 (rejection).
    """

    def __init__(self, source: Source, classes: Sequence[int]) -> None:
        self.source = source
        self.classes = tuple(classes)
        self.weighted = bool(getattr(source, "has_sample_weights", False))
        self.name = source.name
        self.has_metric = getattr(source, "has_metric", True)
        self.beside: Mapping[str, bytes] = getattr(source, "beside", {})
        self.notes: Sequence[str] = getattr(source, "notes", ())

    @property
    def holdout_source(self) -> str | None:
        return self.source.holdout_source

    def model(self) -> nn.Module:
        return self.source.model()

    def example(self) -> Samples:
        return self.source.example()

    def data(self, split: str) -> Samples | None:
        samples = self.source.data(split)
        return None if samples is None else samples[self._mine(samples, split)]

    def elsewhere(self, split: str) -> Samples | None:
        """The samples of all other classes, or those that their weights left out; ``None`` if there are none."""
        samples = self.source.data(split)
        if samples is None:
            return None
        rest = samples[~self._mine(samples, split)]
        return rest if len(rest) else None

    def origin(self, split: str) -> Origin:
        """Where these samples stand in what the user gave."""
        samples = self.source.data(split)
        assert samples is not None
        mine = self._mine(samples, split).nonzero().flatten()
        whole: Origin = self.source.origin(split) if hasattr(self.source, "origin") else Origin(split)
        return Origin(whole.split, mine if whole.index is None else whole.index[mine])

    def slices(self, split: str) -> dict[str, tuple[str, ...]]:
        """The user's own labels of these samples."""
        samples = self.source.data(split)
        found: dict[str, tuple[str, ...]] = self.source.slices(split) if hasattr(self.source, "slices") and samples is not None else {}
        places = self._mine(samples, split).nonzero().flatten().tolist() if samples is not None else []  # also without slices: what is wrong is told early
        return {name: tuple(labels[i] for i in places) for name, labels in found.items()}

    def metric(self, outputs: Any, targets: Any) -> Any:
        return self.source.metric(outputs, targets)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        return self.source.loss(outputs, targets)

    def _mine(self, samples: Samples, split: str) -> torch.Tensor:
        """Which samples are of the classes, and drawn."""
        mine = self._of_classes(samples, split) if self.classes else torch.ones(len(samples), dtype=torch.bool)
        if self.weighted:
            weights: torch.Tensor = self.source.sample_weights(split)  # type: ignore[attr-defined]  # ``has_sample_weights`` says so
            mine &= torch.rand(len(samples), generator=torch.Generator().manual_seed(SPLIT_SEED), dtype=torch.float64) * weights.max() < weights
        if not bool(mine.any()):
            raise DataError(f"sample_weights({split!r}) leaves none of {len(samples):,} samples.", hint="Give more samples a weight near the largest one.")
        return mine

    def _of_classes(self, samples: Samples, split: str) -> torch.Tensor:
        labels = samples.targets
        if not _are_labels(labels):
            raise DataError(
                f"A plan for some classes needs labels [N] as targets, which data({split!r}) does not give.",
                hint="Leave the classes out, or return class numbers.",
            )
        absent = [str(c) for c in self.classes if not bool((labels == c).any())]
        if absent:
            known = ", ".join(map(str, labels.unique().tolist()[:SHOWN]))
            raise DataError(f"No {split} sample is of class {', '.join(absent)}, which the plan is to be for.", hint=f"There are {known}.")
        return torch.isin(labels, torch.tensor(self.classes, dtype=labels.dtype))


def _are_labels(targets: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point()


def meant_for(job: Job) -> Elsewhere | None:
    """Which samples a job is for, with no word of what it costs on others; ``None`` if it is for all alike."""
    return Elsewhere(classes=job.source.classes, weighted=job.source.weighted) if isinstance(job.source, Specialised) else None


def elsewhere(job: Job, found: Found, outcome: Outcome) -> Elsewhere | None:
    """What the delivered artefact loses on the holdout samples that the job is not for; ``None`` if it is for all alike."""
    if not isinstance(job.source, Specialised):
        return None
    samples = job.source.elsewhere("holdout")
    if samples is None:
        job.note("what the plan costs on other samples: the holdout has none")
        return meant_for(job)
    with timed(job, "measuring the other samples", 0.94):
        threads = job.request.budget.threads
        original, compressed = (as_outputs(job.target.run(a, samples, threads=threads), found.original) for a in (found.baseline, outcome.finalist.artifact))
        before, a = job.score(original, samples, original)
        after, b = job.score(compressed, samples, original)
    if a is None or b is None:
        interval = bootstrap_interval(job.metric, original, compressed, samples.targets, 0.0, job.request.seed)[0]
    else:
        interval = drop_interval(a, b, 0.0)[0]
    worst: tuple[ClassLoss, ...] = ()
    if (
        a is not None
        and b is not None
        and _are_labels(samples.targets)
        and min(float(a.min()), float(b.min())) >= 0
        and max(float(a.max()), float(b.max())) <= 1
    ):
        ranked = sorted(class_drops(a, b, samples.targets), key=lambda d: (-d.observed, d.label))
        worst = tuple(ClassLoss(label=d.label, samples=d.samples, drop=d.observed) for d in ranked[:SHOWN])
    return Elsewhere(
        classes=job.source.classes, weighted=job.source.weighted, samples=len(samples), before=before, after=after, drop=interval.observed, lower_95=interval.lower_95, upper_95=interval.upper_95, worst=worst
    )  # fmt: skip
