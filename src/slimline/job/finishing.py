"""Finalists: what was chosen of the race and beside it, quantized, trained with its quantizers where that is called for, lowered and measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from slimline.core.contracts import Artifact
from slimline.core.plan import Plan
from slimline.core.trial import Agreement, Trial
from slimline.errors import SlimlineError
from slimline.job.context import Job, flat
from slimline.job.found import TRIAL_SECONDS, Found, believed_drop, measure, paired_latency, scored, timed, verify_execution
from slimline.job.recovery import QAT_COST, QAT_RATE, QAT_SHARES, Stage, TrainPlan, masks_grow, so_far, trained, usual_steps
from slimline.job.workers import share
from slimline.measure.agreement import agreement
from slimline.model.recover import Distillation, learning_rate, seconds_per_step
from slimline.search.schedule import ENDING, longer_tuning
from slimline.search.workshop import Built
from slimline.store.cache import key

CALIBRATION_BATCH = 16
TUNING_UNTIL = 0.95  # share of the time, after which no finalist's training begins
LEAST_TUNING = 10  # steps
LONGER = 2  # times the steps that were planned for the first: more are not done


@dataclass
class Finalist:
    """A plan as it could be delivered: recovered, quantized, lowered and measured on the evaluation samples."""

    trial: Trial
    built: Built
    artifact: Artifact
    scores: torch.Tensor | None


def finish(job: Job, found: Found, trial: Trial, slack: float | None) -> Finalist:
    """Quantize the recovered structure, train with the quantizers in the loop where that is called for, lower, measure.

    ``slack``: the drop that the holdout is expected to forgive; ``None``: nothing is trained.

    Raises:
        SlimlineError: the plan cannot be carried out after all.
    """
    start = time.monotonic()
    plan = trial.plan
    built, artifact, quality, scores, fidelity = _ready(job, found, trial)
    if _falls_short(job, found, plan, quality, slack):
        tuned = _with_quantizers(job, found, built, plan)
        if tuned is not None:
            other = found.workshop.lower(tuned[0])
            better, better_scores, closer = scored(job, found, other)
            drop = believed_drop(job, found)
            if better is not None and quality is not None and drop(better, closer) < drop(quality, fidelity):
                built, artifact, quality, scores, fidelity = tuned[0], other, better, better_scores, closer
                found.training.setdefault(plan.digest, []).append((tuned[1], True))
    verify_execution(job, built, artifact)
    latency = paired_latency(job, found, artifact, 2 * TRIAL_SECONDS)
    measured = measure(job, found.workshop, artifact, latency, quality, built.program, exact=job.request.budget.minimize == "download")
    assert built.stored is not None
    few = (job.calibration if job.calibration is not None else job.example)[:64]
    close = agreement(job.target.run(artifact, few, threads=2), flat(built.stored(few)), classes=job.classes)
    violations = job.request.budget.violations(measured, found.baseline_measurement)
    final = trial.model_copy(
        update={
            "origin": f"{trial.origin} + recovery" if found.modules.get(plan.digest) is not None else trial.origin,
            "measurement": measured,
            "violations": violations,
            "status": "missed" if violations else "met",
            "agreement": close,
            "fidelity": fidelity,
            "seconds": round(time.monotonic() - start, 2),
        }
    )
    job.journal.append("finalist", final.model_dump(mode="json"), job.clock.elapsed)
    return Finalist(final, built, artifact, scores)


def _ready(job: Job, found: Found, trial: Trial) -> tuple[Built, Artifact, float | None, torch.Tensor | None, Agreement | None]:
    """A plan as the race left it, or untrained where that is better: built, lowered, its quality, scores and fidelity."""
    plan = trial.plan
    built = found.quantized.get(plan.digest) or found.workshop.build(plan, found.modules.get(plan.digest))
    artifact = found.workshop.lower(built)
    quality, scores, fidelity = scored(job, found, artifact)
    untrained = trial.measurement.quality if trial.measurement is not None else None
    drop = believed_drop(job, found)
    made = plan.digest in found.modules or plan.digest in found.quantized
    # Training a mild plan can lose what compression did not; of one that was trained for its archive the trial is the trained one's.
    if made and not plan.recovery.penalty and quality is not None and untrained is not None and drop(untrained, trial.fidelity) < drop(quality, fidelity):
        found.modules.pop(plan.digest, None)
        found.quantized.pop(plan.digest, None)
        found.training.pop(plan.digest, None)
        built = found.workshop.build(plan)
        artifact = found.workshop.lower(built)
        quality, scores, fidelity = scored(job, found, artifact)
    return built, artifact, quality, scores, fidelity


def tune_ahead(job: Job, found: Found, trials: Sequence[tuple[Trial, float | None]]) -> None:
    """Have the job's workers train those with quantizers that ``finish`` will, one after the other, find to need it; each with its slack."""
    if job.workers is None:
        return
    tasks: list[TrainPlan] = []
    for trial, slack in trials:
        try:
            built, _, quality, *_ = _ready(job, found, trial)
        except SlimlineError:  # ``finish`` will say so
            continue
        stage = _tuning(job, found, built, found.tuned + len(tasks)) if _falls_short(job, found, trial.plan, quality, slack) else None
        if stage is not None:
            tasks.append(TrainPlan(trial.plan, (*so_far(found, trial.plan), stage), TUNING_UNTIL))
    share(job, tasks, "training with quantizers in the loop", 0.8, 0.85)


def _falls_short(job: Job, found: Found, plan: Plan, quality: float | None, slack: float | None) -> bool:
    """Whether a finalist is trained with its quantizers."""
    base = found.baseline_measurement.quality
    if quality is None or base is None or slack is None or not plan.stage("numerics"):
        return False
    return base - quality > _enough(job, found, plan, slack)


def _enough(job: Job, found: Found, plan: Plan, slack: float) -> float:
    """The drop up to which a finalist is not trained with its quantizers."""
    if plan.recovery.penalty:
        return math.inf  # it was, for its archive; without the price of bits it would grow again
    if job.train is not None and plan.digest not in found.recovered:
        return slack  # safe as it is
    return 0.5 * slack if plan.digest in found.quantized or job.train is None else -math.inf  # what was trained in float alone has lost to rounding since


def planned_tuning(job: Job, found: Found, place: int) -> int:
    """Steps with quantizers of the ``place``-th finalist that needs them, as the schedule has them."""
    share = (*QAT_SHARES, 0.0)[min(place, len(QAT_SHARES))] / QAT_COST if job.train is not None else 1.0
    return int(usual_steps(job, found) * share)


def _tuning_steps(job: Job, found: Found, built: Built, place: int) -> int:
    """The same, or more for what was in the race, where what came before left more time than was expected. In the journal: a run that is killed later on does as many when it is resumed,
    one that is killed before takes longer until here and may have time for less."""
    planned = planned_tuning(job, found, place)
    places = len(QAT_SHARES) - place
    if built.plan.digest not in found.raced or planned < LEAST_TUNING or places < 1:
        return planned
    kept = next((e for e in job.journal.events("tuning") if e["place"] == place), None)
    if kept is None:
        usual = statistics.median([t.seconds for t in found.trials if t.measurement is not None])
        with timed(job, "probing throughput", 0.85):
            how = _how(job, found, LEAST_TUNING)
            assert job.train is not None
            step = seconds_per_step(built.training.copy().module, job.model, job.train, replace(how, learning_rate=1e-6))
        given = sum(int(e["steps"]) for e in job.journal.events("tuning") if found.tuned <= e["place"] < place)  # to those that workers will train meanwhile
        left = (1 - ENDING) * job.clock.seconds - job.clock.elapsed - step * given
        steps = longer_tuning(planned, left, step, candidate=usual, places=places)
        kept = {"place": place, "steps": min(steps, max(planned, LONGER * planned_tuning(job, found, 0)))}
        job.journal.append("tuning", kept, job.clock.elapsed)
    return int(kept["steps"])


def _how(job: Job, found: Found, steps: int) -> Distillation:
    return Distillation(
        steps=steps,
        batch=found.batch if job.train is not None else CALIBRATION_BATCH,
        seed=job.request.seed + 7,
        bf16=found.bf16,
        classes=job.classes,
        device=job.request.train_device,
        augmentation=found.augmentation,
        learning_rate=learning_rate(job.model) * QAT_RATE * (1.0 if job.train is not None else 0.1),
        weight_decay=0.0,
    )


def _tuning(job: Job, found: Found, built: Built, place: int) -> Stage | None:
    """How the ``place``-th finalist that needs it is trained with its quantizers; ``None`` where the time for it is used up or there is nothing to train on."""
    if job.train is None and job.calibration is None:
        return None
    steps = _tuning_steps(job, found, built, place)
    if steps < LEAST_TUNING:
        return None
    how = replace(_how(job, found, steps), gradual=masks_grow(found, built.plan))
    return Stage(key("quantized", built.plan.digest, steps, found.schedule.recovery_steps), how, True)


def _with_quantizers(job: Job, found: Found, built: Built, plan: Plan) -> tuple[Built, Distillation] | None:
    """A copy trained with quantizers in the loop, and how; ``None`` where it is not."""
    samples = job.train if job.train is not None else job.calibration
    stage = _tuning(job, found, built, found.tuned)
    if samples is None or stage is None:
        return None
    training = built.training.copy()
    with timed(job, "training with quantizers in the loop", 0.85):
        if not trained(job, found.answers, training.module, stage.how, samples, stage.name, TUNING_UNTIL, built.program):
            return None
    found.tuned += 1
    return Built(plan, built.module, built.program, training), stage.how
