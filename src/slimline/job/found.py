"""What the search knows, and how an artefact is measured: shared by everything after the start of a job."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from slimline.archive.container import download
from slimline.core.contracts import Artifact, Operation
from slimline.core.heap import give_back
from slimline.core.interrupts import check
from slimline.core.progress import Best
from slimline.core.result import Schedule
from slimline.core.site import Refusal, Site
from slimline.core.trial import Agreement, Latency, Measurement, Trial
from slimline.errors import SlimlineError
from slimline.job.context import Job, as_outputs, flat
from slimline.job.texts import lengths_left_open
from slimline.measure.agreement import agreement
from slimline.measure.certify import expected_drop, likely_half_width, shrunk, usual_drop
from slimline.model.augment import Augmentation
from slimline.model.recover import Answers, Distillation
from slimline.model.sites import find_sites
from slimline.report.sentence import in_points
from slimline.search.drops import Drop, believed_drops
from slimline.search.race import Entry
from slimline.search.space import Space
from slimline.search.workshop import Built, Workshop

TRIAL_SECONDS = 0.4
UNKNOWN = 0.05  # of the answers, that a compressed model gives differently, as long as nothing was tried


class Judged(NamedTuple):
    """An artefact on the evaluation samples: quality, per-sample scores, fidelity; ``None`` without data."""

    quality: float | None
    scores: torch.Tensor | None
    fidelity: Agreement | None


class Expected(NamedTuple):
    """On the holdout: the drop, the share of samples whose scores differ (of values the variance of the difference), and how many samples say so."""

    drop: float
    discordance: float
    known: float


Training = tuple[Distillation, bool]  # how, and whether with quantizers in the loop


@dataclass
class Found:
    """What the search knows: grows as it goes."""

    workshop: Workshop
    space: Space
    refused: list[Refusal]
    schedule: Schedule
    baseline: Artifact
    baseline_measurement: Measurement
    original: Any
    baseline_scores: torch.Tensor | None
    bf16: bool
    batch: int
    augmentation: Augmentation
    temperature: float | None = None  # of the original's class scores (``_temperature``); known where quality is the share of right answers
    trials: list[Trial] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    quantized: dict[str, Built] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)  # the drop after training, by plan, as it is expected on the holdout; with what rounding will add
    raced: dict[str, Entry] = field(default_factory=dict)  # what was trained in the race, by plan
    judged: dict[str, Judged] = field(default_factory=dict)  # these, after their last rung
    answers: Answers = field(default_factory=Answers)  # the original's, on the batches of the training under way
    small: list[Trial] = field(default_factory=list)  # trained for a small archive, what the certificate's sequence gains the most by; the smallest first
    small_drops: dict[str, float] = field(default_factory=dict)  # what each of these lost, as far as it is believed, by plan
    training: dict[str, list[Training]] = field(default_factory=dict)  # what a plan was trained with, in order
    tuned: int = 0  # finalists that were trained with their quantizers
    shown: float = math.inf  # what is minimised, of the best that was shown so far


def look(job: Job) -> tuple[tuple[Site, ...], tuple[Refusal, ...], Workshop]:
    """Where something can be decided, where not, and the original's workshop."""
    sites, refused = find_sites(job.model, job.example)
    sites, varying = lengths_left_open(job, sites)
    sites = tuple(s for s in sites if any(s.kind in m.kinds for n, m in job.methods.items() if n != "keep"))
    loss = job.loss if job.train is not None else None
    workshop = Workshop(job.model, job.usual, job.calibration, sites, job.target, loss, job.request.seed, classes=job.classes)
    return sites, (*refused, *varying), workshop


@contextlib.contextmanager
def timed(job: Job, name: str, fraction: float) -> Iterator[None]:
    """A stage: announced, and its seconds counted."""
    check()
    job.progress.stage(name, fraction, max(0.0, job.clock.left))
    give_back()
    start = time.monotonic()
    try:
        yield
    finally:
        job.spent[name] = round(job.spent.get(name, 0.0) + time.monotonic() - start, 2)


def show_best(job: Job, found: Found, trial: Trial, *, with_latency: bool = True) -> None:
    """Show a trial that was measured, where it keeps every limit (the drop as far as the evaluation samples are believed) and nothing shown so far was better.

    ``with_latency``: it was measured, too.
    """
    m = trial.measurement
    if m is None or m.quality is None:
        return  # without data nothing says what is good
    budget, base = job.request.budget, found.baseline_measurement
    price = budget.objective(m, base)
    if price >= found.shown or [v for v in budget.violations(m, base) if with_latency or v.quantity != "latency"]:
        return
    if base.quality is not None and believed_drop(job, found)(m.quality, trial.fidelity) > budget.max_drop.allowed(base.quality):
        return
    found.shown = price
    download = budget.minimize == "download"
    before, after = (base.download_bytes, m.download_bytes) if download else (base.size_bytes, m.size_bytes)
    job.progress.best(
        Best(
            trial.plan.digest,
            after,
            before / after,
            m.latency_ms.median if with_latency else None,
            base.latency_ms.median / m.latency_ms.median,
            base.quality - m.quality if base.quality is not None else None,
            in_points(base.quality),
            m.latency_ms.estimated,
            download,
        )
    )


def measure(
    job: Job, workshop: Workshop, artifact: Artifact, latency: Latency, quality: float | None, program: Any, rss: int | None = None, *, exact: bool = False
) -> Measurement:
    """Everything about an artefact but its latency and quality, which are handed in. ``exact``: its archive is the smallest, not the fastest."""
    archive = download(artifact.content, exact=exact)
    return Measurement(
        size_bytes=artifact.size_bytes,
        download_bytes=archive.bytes,
        download_codec=archive.codec,
        download_above_entropy=archive.above_entropy,
        memory_bytes=job.target.memory(artifact, job.longest),
        rss_bytes=rss,
        parameters=sum(t.numel() for t in program.parameters().values() if t.is_floating_point()),
        macs=program.macs(),
        latency_ms=latency,
        quality=quality,
    )


def scored(job: Job, found: Found, artifact: Artifact) -> Judged:
    """By the artefact's own outputs."""
    return Judged(None, None, None) if job.evaluation is None else judged(job, found, job.target.run(artifact, job.evaluation, threads=2))


def judged(job: Job, found: Found, answers: tuple[torch.Tensor, ...]) -> Judged:
    """The same of ``answers`` that were given to the evaluation samples."""
    if job.evaluation is None:
        return Judged(None, None, None)
    quality, scores = job.score(as_outputs(answers, found.original), job.evaluation, found.original)
    return Judged(quality, scores, agreement(answers, flat(found.original), classes=job.classes, temperature=found.temperature))


def half_width_of(job: Job, found: Found, scores: torch.Tensor | None) -> float | None:
    """What the interval on the holdout is expected to add to a drop, from per-sample ``scores``; ``None`` without them or a holdout."""
    holdout = job.source.data("holdout")
    if holdout is None or scores is None or found.baseline_scores is None:
        return None
    return likely_half_width(found.baseline_scores, scores, len(holdout))


def discordance_of(job: Job, found: Found, scores: torch.Tensor | None) -> float:
    """The share of samples on which ``scores`` differ from the original's; where outputs are values, the variance of the difference."""
    if scores is None or found.baseline_scores is None:
        return UNKNOWN
    differences = scores - found.baseline_scores
    return float(differences.abs().mean() if job.classes else differences.var(correction=0))


def judged_on(job: Job) -> int:
    """How many samples candidates are judged by."""
    return 0 if job.evaluation is None else len(job.evaluation)


def on_holdout(job: Job, drop: float, discordance: float, likely: float | None = None, *, rivals: int = 1, trained: bool = False) -> Expected:
    """What to expect of what was the best of ``rivals`` on the evaluation samples with ``drop``. ``likely``: what it loses by the original's probabilities."""
    count = judged_on(job)
    if not job.classes:
        return Expected(shrunk(drop, discordance, count, rivals), discordance, count)
    expected, known = expected_drop(drop, discordance, count, rivals, usual_drop(discordance, count, likely, trained=trained))
    return Expected(expected, discordance, known)


def of_judged(job: Job, found: Found, judged: Judged, *, rivals: int = 1, trained: bool = True) -> Expected:
    """What to expect of what was judged so."""
    base = found.baseline_measurement.quality
    assert base is not None and judged.quality is not None
    likely = judged.fidelity.likely_drop if judged.fidelity is not None else None
    return on_holdout(job, base - judged.quality, discordance_of(job, found, judged.scores), likely, rivals=rivals, trained=trained)


def of_trial(job: Job, found: Found, trial: Trial) -> Expected | None:
    """What to expect of a candidate as it was tried, changed answers taken for changed scores; ``None`` where answers are none, or there is no data."""
    base, m, f = found.baseline_measurement.quality, trial.measurement, trial.fidelity
    if base is None or m is None or m.quality is None or f is None or f.top1 is None:
        return None
    return on_holdout(job, base - m.quality, 1 - f.top1, f.likely_drop, trained=bool(trial.plan.recovery.penalty))


def untrained_drop(job: Job, found: Found, trial: Trial) -> float:
    """The drop to expect on the holdout of a candidate that nothing was trained for; of values as it was seen."""
    base, quality = found.baseline_measurement.quality, trial.measurement.quality if trial.measurement is not None else None
    if base is None or quality is None:
        return 0.0
    expected = of_trial(job, found, trial)
    return base - quality if expected is None else expected.drop


def believed_drop(job: Job, found: Found) -> Drop:
    """``drop(quality, fidelity)`` on the evaluation samples, as far as they are to be believed."""
    base = found.baseline_measurement.quality
    return believed_drops(found.trials, base or 0.0, found.space.judged_on, math.inf if base is None else job.request.budget.max_drop.allowed(base))


def paired_latency(job: Job, found: Found, artifact: Artifact, seconds: float) -> Latency:
    """Measured interleaved with the baseline, and scaled by what the baseline takes now against what it took at the start.

    A machine that others use is slower at one time than at another; the ratio is less so.
    """
    return paired_latencies(job, found, [artifact], seconds)[0]


def paired_latencies(job: Job, found: Found, artifacts: Sequence[Artifact], seconds: float) -> tuple[Latency, ...]:
    """The same of several, interleaved with each other too: what is chosen between is timed at one time."""
    budget = job.request.budget
    now, *latencies = job.target.latency([found.baseline, *artifacts], job.usual, batch=budget.batch, threads=budget.threads, seconds=seconds)
    scale = found.baseline_measurement.latency_ms.median / now.median
    return tuple(t.model_copy(update={"median": t.median * scale, "p95": t.p95 * scale}) for t in latencies)


def verify_execution(job: Job, built: Built, artifact: Artifact) -> tuple[Operation, ...]:
    """A layer that the plan calls integer and the runtime runs in float fails the plan; so does a float one that it runs in integers. Returns what was read back.

    Raises:
        SlimlineError: naming the layers.
    """
    encoded = built.stored.encoded if built.stored is not None else {}
    wanted = {p for p, e in encoded.items() if e.execute in ("integer", "dynamic")}
    operations = job.target.operations(artifact, job.usual, threads=job.request.budget.threads)
    if not wanted:
        return operations
    weighted = [o for o in operations if o.weight in wanted]
    floating = sorted({o.weight for o in weighted if o.executes != "integer"})
    if floating:
        raise SlimlineError(f"{job.target.name} runs {', '.join(floating[:3])} in float although the plan says integer.")
    rounded = sorted({o.weight for o in operations if o.weight in built.program.weights and o.weight not in encoded and o.executes == "integer"})
    if rounded:
        raise SlimlineError(f"{job.target.name} runs {', '.join(rounded[:3])} in integers although the plan says float.")
    missing = sorted(wanted - {o.weight for o in weighted})
    if missing:
        job.note(f"whether {', '.join(missing[:3])} run in integers could not be read back from {job.target.name}")
    return operations
