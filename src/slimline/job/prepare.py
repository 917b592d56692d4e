"""Before the first candidate: sites, the schedule, the option database, and what layers take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from slimline.core.budget import QUANTITIES
from slimline.core.contracts import Artifact, saturates
from slimline.core.plan import Recovery
from slimline.core.result import Schedule
from slimline.core.site import Refusal, Site
from slimline.core.trial import Latency, Measurement
from slimline.errors import BudgetNotMet
from slimline.job.context import Job, flat
from slimline.job.found import Found, look, measure, timed
from slimline.job.offers import affordable, blocks_repaired, fewer, offers
from slimline.job.option_database import in_integers, option_database
from slimline.job.probing import limit_evaluation, scheduled, speed_of
from slimline.job.recovery import COARSENESS
from slimline.model.augment import Augmentation, find_augmentation
from slimline.model.recover import evaluate
from slimline.numerics.changes import temperature
from slimline.report.sentence import MINIMISED, bytes_text, count_text, latency_text, number_of
from slimline.search.nearby import pruned
from slimline.search.schedule import LEAST_CANDIDATES, LEAST_SAMPLES, MOST_CANDIDATES
from slimline.search.space import Place, Space, layers_of
from slimline.search.timing import measure_timing
from slimline.search.workshop import Workshop

TIMING_SHARE = 0.12  # of the time, that lowering whole models to time their layers may take


def prepare(job: Job) -> Found:
    """Sites, schedule, option database, timing: everything before the first candidate.

    Raises:
        BudgetNotMet: a budget below what any plan can reach.
    """
    budget = job.request.budget
    with timed(job, "looking at the model", 0.01):
        sites, refused, workshop = look(job)
        baseline = job.target.lower(workshop.original, job.usual)
        latency = _latency(job, baseline)
        limit_evaluation(job, baseline)
        samples = job.evaluation if job.evaluation is not None else job.example
        original = evaluate(job.model, samples)
        quality, scores = job.score(original, samples, original) if job.evaluation is not None else (None, None)
        measured = measure(job, workshop, baseline, latency, quality, workshop.program)
    if quality is not None:
        budget.max_drop.allowed(quality)
    _say_found(job, sites, refused, measured)
    offered = {s.id: offers(job, s) for s in sites}
    speed = speed_of(job, workshop, offered)
    least = LEAST_SAMPLES
    if job.request.plan is None:
        offered, least = fewer(job, sites, offered, speed)
    schedule, bf16, batch, candidate = scheduled(job, workshop, offered, speed, least)
    if job.request.plan is None:
        offered = affordable(job, sites, offered, speed, schedule.samples_loss)
    workshop.moments = any(m.stage == "structure" for name, options in offered.items() if "#" not in name for m in options)
    _say_planned(job, schedule)
    with timed(job, "measuring options", 0.08):
        places, more, pairs = option_database(job, workshop, sites, offered, schedule.samples_loss, repaired=blocks_repaired(job, sites, offered, speed))
    with timed(job, "timing layers", 0.18):
        timing = _timing(job, workshop, baseline, places, candidate)
    if getattr(job.target, "integer_only", False):
        places = [in_integers(p) for p in places]
    overhead, per_layer = _overhead(workshop, baseline)
    space = Space(
        job.fingerprint,
        tuple(places),
        layers_of(workshop.program.weights, places),
        timing,
        overhead,
        per_layer,
        Recovery(steps=schedule.recovery_steps, batch=batch, gradual=job.request.plan is not None and job.request.plan.recovery.gradual),
        job.request.seed,
        getattr(job.target, "weights_in_flash", False),
        job.classes,
        pairs,
        len(job.evaluation) if job.evaluation is not None and job.metric_name == "top1" else None,
        job.train is not None,
    )
    _check_reachable(job, space)
    if job.request.plan is None:
        asked = {*budget.weights(space.costs(space.nothing)), *budget.limits()}
        space = pruned(space, lambda o: budget.minimize == "download" and o.coarseness == COARSENESS, [q for q in QUANTITIES if q in asked])
    return Found(
        workshop,
        space,
        [*refused, *more],
        schedule,
        baseline,
        measured,
        original,
        scores,
        bf16,
        batch,
        _augmentation(job, schedule, original, bf16=bf16),
        _temperature(job, original, scores),
    )


def _augmentation(job: Job, schedule: Schedule, original: Any, *, bf16: bool) -> Augmentation:
    """How training samples may be varied: what costs the original no answers; none where nothing is trained."""
    if not schedule.recovery_steps or job.evaluation is None:
        return Augmentation()
    with timed(job, "looking for safe augmentations", 0.2):
        found = Augmentation()
        if job.evaluation.targets is not None:
            found = find_augmentation(
                lambda s: job.model_quality(job.model, s, original, bf16=bf16)[0],
                job.evaluation[:2_000],
                few=2_000,
                seed=job.request.seed,
                warp=job.request.budget.minimize == "download",
            )
        return replace(found, mix=True) if job.train is None else found


def _temperature(job: Job, original: Any, scores: torch.Tensor | None) -> float | None:
    """By which the original's class scores become calibrated probabilities, where a sample's score says whether its answer is right."""
    labels, answers = job.evaluation.targets if job.evaluation is not None else None, flat(original)[0]
    if not job.classes or scores is None or not isinstance(labels, torch.Tensor) or answers.ndim != 2 or labels.shape != answers.shape[:1]:
        return None
    return temperature(answers, labels) if torch.equal(scores.double(), (answers.argmax(1) == labels).double()) else None


def _say_found(job: Job, sites: tuple[Site, ...], refused: tuple[Refusal, ...], measured: Measurement) -> None:
    kinds = {k: sum(s.kind == k for s in sites) for k in ("weight", "channels", "block")}
    quality = "no labelled data" if measured.quality is None else f"{job.metric_name} {measured.quality:.4f}"
    data = [f"{number_of(len(s), 'sample')} {use}" for s, use in ((job.train, "to train on"), (job.evaluation, "to choose by")) if s is not None]
    job.progress.found(
        (
            f"{job.source.name}: {measured.parameters:,} parameters, {count_text(measured.macs)} multiply-adds, {bytes_text(measured.size_bytes)}, {latency_text(measured.latency_ms.median, measured.latency_ms.estimated)}, {'; '.join([quality, *data])}",
            f"{number_of(kinds['weight'], 'weight')} to quantize, {number_of(kinds['channels'], 'set of channels', 'sets of channels')} to prune, {number_of(kinds['block'], 'block')} to drop; {number_of(len(refused), 'place')} left alone, with reasons",
        )
    )


def _say_planned(job: Job, schedule: Schedule) -> None:
    narrowed = "; 8-bit weights in 7 bits, since this processor's integer kernels saturate" if saturates(job.target) else ""
    recovery = (
        number_of(schedule.recovery_steps, "training step")
        if schedule.recovery_steps
        else "no training (no train split)"
        if job.train is None
        else "no training (too little time)"
    )
    job.progress.found(
        (
            f"minimising {MINIMISED[job.request.budget.minimize]} for {job.target.name} {job.target.version()}, in {job.clock.seconds:.0f} s: {number_of(schedule.candidates, 'candidate')}, {recovery}, {number_of(schedule.finalists, 'finalist')}{narrowed}",
        )
    )
    if schedule.candidates <= LEAST_CANDIDATES and job.request.plan is None:
        job.progress.note(f"little time: up to {MOST_CANDIDATES} candidates are tried where there is time for them; give more --time")


def _latency(job: Job, baseline: Artifact) -> Latency:
    """The original's; all others are measured against it, so a run that goes on keeps its own."""
    kept = job.journal.last("baseline")
    if kept is not None:
        return Latency.model_validate(kept)
    budget = job.request.budget
    (latency,) = job.target.latency([baseline], job.usual, batch=budget.batch, threads=budget.threads, seconds=1.0)
    job.journal.append("baseline", latency.model_dump(mode="json"), job.clock.elapsed)
    return latency


def _timing(job: Job, workshop: Workshop, baseline: Artifact, places: list[Place], candidate: float) -> Any:
    from slimline.search.space import Timing

    kept = job.journal.last("timing")
    if kept is not None:  # measured once: a resumed run must choose by the same costs
        return Timing(kept["full"], kept["narrow"], kept["rest"], kept["edge"])
    timing, _ = measure_timing(
        workshop,
        baseline,
        places,
        job.base_plan,
        batch=job.request.budget.batch,
        threads=job.request.budget.threads,
        note=job.note,
        most=max(2, int(TIMING_SHARE * job.clock.seconds / max(candidate, 1e-9))),
        widths="latency" in job.request.budget.asked,
    )
    job.journal.append("timing", {"full": timing.full, "narrow": timing.narrow, "rest": timing.rest, "edge": timing.edge}, job.clock.elapsed)
    return timing


def _overhead(workshop: Workshop, baseline: Artifact) -> tuple[int, int]:
    """Bytes of the graph around the weights: of the whole and per layer; corrected by the first trials."""
    tensors = sum(4 * t.numel() for t in workshop.program.parameters().values())
    rest = max(baseline.size_bytes - tensors, 0)
    layers = max(1, len(workshop.program.weights))
    return rest // 2, rest // (2 * layers)


def _check_reachable(job: Job, space: Space) -> None:
    for quantity, limit in job.request.budget.limits().items():
        least = space.least("size" if quantity == "memory" else quantity)
        if quantity == "memory" and space.weights_in_flash:
            continue
        if quantity in ("size", "macs", "memory") and limit < least:
            unit = "multiply-adds" if quantity == "macs" else "bytes"
            raise BudgetNotMet(
                f"No plan reaches a {quantity} of {limit:,.0f} bytes: with the smallest option everywhere the weights alone take {least:,.0f} bytes."
                if quantity != "macs"
                else f"No plan reaches {limit:,.0f} multiply-adds: the narrowest takes {least:,.0f}.",
                hint=f"Allow at least {least:,.0f} {unit}, or more methods (slimline methods).",
            )
