"""Candidates: stitched from measured options, built, and measured in the runtime."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils import _pytree

from slimline.core.budget import Budget
from slimline.core.contracts import Artifact
from slimline.core.plan import Plan
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.core.trial import Trial
from slimline.errors import SlimlineError
from slimline.job.context import Job, flat
from slimline.job.found import TRIAL_SECONDS, Found, half_width_of, judged, measure, paired_latency, show_best, timed, verify_execution
from slimline.measure.agreement import agreement
from slimline.model.recover import evaluate
from slimline.numerics.divergence import mean_divergence
from slimline.search.schedule import more_candidates
from slimline.search.strategies.replay import Replay
from slimline.search.timing import per_layer

LOSS_VALUES = 2**24  # of the outputs, that a candidate's divergence is measured on where they are more than those of the schedule's samples
CAUTIOUS, ORIGINAL = "cautious", "original"  # the origins of candidates that ``job.cautious`` adds
ALONE = 0.6  # of the time, until which candidates are tried where none will be trained
LEAST_TRIALS = 3  # candidates that are tried whatever the clock says


def search(job: Job, found: Found) -> None:
    """Candidates of the strategy, built without training and measured in the runtime, until the schedule is done."""
    resumed = [Trial.model_validate(t) for t in job.journal.events("trial")]
    found.trials += resumed
    for trial in resumed:
        show_best(job, found, trial)
    if resumed:  # what an earlier part of this run had prepared, too, costs no candidates now
        job.clock.back_to(min(job.journal.spent, job.clock.elapsed))
    given = job.request.plan
    strategy = Replay(plan=given) if given is not None else find("strategies", job.request.strategy)(found.schedule.candidates)
    budget = _sought(job, found, strategy)
    samples = loss_samples(job, found)
    reference = original_answers(job, found, samples)
    while True:
        if job.clock.over(0.8) and sum(t.measurement is not None for t in found.trials) >= LEAST_TRIALS:
            job.cut(f"candidates: {len(found.trials)} of at most {found.schedule.candidates} were tried before their time was up")
            break
        plan = strategy.propose(found.space, budget, _proposed(found))
        if plan is None:
            if given is None and _more(job, found):
                strategy = find("strategies", job.request.strategy)(found.schedule.candidates)
                continue
            break
        with timed(job, "trying candidates", min(0.4, 0.2 + 0.2 * len(found.trials) / (1.4 * found.schedule.candidates))):
            trial = try_plan(job, found, plan, strategy.name, samples, reference)
        found.trials.append(trial)
        show_best(job, found, trial)
        job.journal.append("trial", trial.model_dump(mode="json"), job.clock.elapsed)
        if trial.status == "failed":
            job.progress.note(f"a candidate failed: {trial.error.splitlines()[0][:160]}")


def _proposed(found: Found) -> list[Trial]:
    """The strategy's own trials: others came after its end."""
    return [t for t in found.trials if t.origin not in (CAUTIOUS, ORIGINAL)]


def _more(job: Job, found: Found) -> bool:
    """Once, where the scheduled candidates took less time than the probe let expect: more of them. In the journal, so that a resumed run has as many."""
    kept, mine = job.journal.last("schedule"), _proposed(found)
    if kept is None or kept.get("extended"):
        return False
    planned = found.schedule.candidates
    spare = 0.0 if found.space.steps else ALONE * job.clock.seconds - job.clock.elapsed
    more = more_candidates(planned, float(kept.get("candidate", 0.0)), [t.seconds for t in mine], spare) if len(mine) >= planned else 0
    found.schedule = found.schedule.model_copy(update={"candidates": found.schedule.candidates + more})
    job.journal.append("schedule", {**kept, "schedule": found.schedule.model_dump(), "extended": True}, job.clock.elapsed)
    return more > 0


def _sought(job: Job, found: Found, strategy: Any) -> Budget:
    """What candidates are looked for by: the budget. Where none keeps it on paper, the quantity that is farthest from its limit is minimised in place of all limits,
    so that the closest is built and delivered with what stood in the way."""
    budget, limits = job.request.budget, job.request.budget.limits()
    if not limits or strategy.propose(found.space, budget, []) is not None:
        return budget
    costs = found.space.costs(found.space.nothing)
    farthest = max(limits, key=lambda quantity: costs[quantity] / limits[quantity])
    job.note(f"candidates: none keeps every limit on paper, so the least {farthest} was looked for")
    return Budget(max_drop=budget.max_drop, minimize=farthest, batch=budget.batch, threads=budget.threads)


def loss_samples(job: Job, found: Found) -> Samples:
    """What a candidate's divergence is measured on.

    Not the calibration samples, on which least squares repaired its structure: four blocks less of EfficientNet-Lite0 seemed to lose nothing there.
    """
    if job.evaluation is not None:  # whose answers are known anyway, for the quality: of 64 images of ResNet-20 a few uncertain ones decided
        each = max(sum(t[0].numel() for t in flat(found.original)), 1)
        return job.evaluation[: max(found.schedule.samples_loss, LOSS_VALUES // each)]
    source = job.calibration if job.calibration is not None else job.example
    return source[: found.schedule.samples_loss]


def original_answers(job: Job, found: Found, samples: Samples) -> Any:
    """The original's to the ``loss_samples``."""
    return evaluate(job.model, samples) if job.evaluation is None else _pytree.tree_map_only(torch.Tensor, lambda t: t[: len(samples)], found.original)


def divergence_of(job: Job, artifact: Artifact, samples: Samples, reference: Any) -> float:
    """Of the artefact's outputs from the original's (``reference``): nats of class scores, relative squared error of values."""
    outputs = job.target.run(artifact, samples, threads=2)
    return float(mean_divergence(outputs, flat(reference), classes=job.classes))


def try_plan(job: Job, found: Found, plan: Plan, origin: str, samples: Samples, reference: Any) -> Trial:
    """Build a plan and measure it. ``samples``: those of ``loss_samples``, the first of what quality is measured on; ``reference``: the original's answers to them."""
    start = time.monotonic()
    choice = found.space.choice(plan)
    predicted = None if choice is None else found.space.loss(choice)
    costs = {} if choice is None else {k: float(v) for k, v in found.space.costs(choice).items()}
    try:
        built = found.workshop.build(plan)
        artifact = found.workshop.lower(built)
        operations = verify_execution(job, built, artifact)
        latency = paired_latency(job, found, artifact, TRIAL_SECONDS)
        answers = job.target.run(artifact, samples if job.evaluation is None else job.evaluation, threads=2)
        loss = float(mean_divergence([a[: len(samples)] for a in answers], flat(reference), classes=job.classes))
        quality, scores, fidelity = judged(job, found, answers)
        measured = measure(job, found.workshop, artifact, latency, quality, built.program)
        close = agreement(
            job.target.run(artifact, samples[:32], threads=2), flat(built.stored(samples[:32])) if built.stored is not None else (), classes=job.classes
        )
    except SlimlineError as error:
        return Trial(
            plan=plan, origin=origin, status="failed", error=str(error), predicted_loss=predicted, predicted=costs, seconds=round(time.monotonic() - start, 2)
        )
    violations = job.request.budget.violations(measured, found.baseline_measurement)
    return Trial(
        plan=plan,
        origin=origin,
        status="missed" if violations else "met",
        measurement=measured,
        predicted_loss=predicted,
        measured_loss=loss,
        predicted=costs,
        layer_ms=per_layer(operations, latency),
        agreement=close,
        fidelity=fidelity,
        half_width=half_width_of(job, found, scores),
        violations=violations,
        seconds=round(time.monotonic() - start, 2),
    )
