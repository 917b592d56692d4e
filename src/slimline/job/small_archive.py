"""Training for a small archive: a coded bit costs more and more loss, for as long as the accuracy allows it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from slimline.core.contracts import Artifact
from slimline.core.plan import Plan
from slimline.core.trial import Trial
from slimline.job.context import Job
from slimline.job.found import Found, Training, measure, scored, timed
from slimline.job.recovery import ARCHIVE_SHARE, trained
from slimline.model.coded import CodedBits
from slimline.model.recover import Distillation
from slimline.search.workshop import Built
from slimline.store.cache import key

COST = 1.6  # of a step with penalty, in steps without
STAGES = 16
FIRST = 0.25  # nats for a mean coded bit
UP, FINE = 2.0, 2**0.5  # what the price changes by: until the accuracy first gives way, and from then on
LATEST = 0.82  # of the time
KEPT = 3  # members of the front that become finalists
WANTED_RATE = 5.0  # of the grid that training starts from: about so many bits of a value are given up before
LEAST_DROP = 0.25  # of the allowance, that is used where the holdout is so small that the certificate's half-width takes all


@dataclass
class Stage:
    """What one stage came to."""

    trial: Trial
    drop: float
    built: Built
    training: list[Training]


def train_for_archive(job: Job, found: Found, ended: list[Trial], halfwidth: float) -> None:
    """Train the race's winner further under a price of its coded bits; ``found.small`` are then the smallest that keep the allowance, the smallest first.

    The price is the multiplier of a constraint: it rises after a stage that kept the drop within the allowance less the certificate's ``halfwidth``, and falls after one that
    did not (dual ascent). Each stage goes on from the one before, and what it made is measured as an artefact, with its real archive.

    References:
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, section 2 (the penalty).
        Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.4 (prices of constraints).
    """
    base = found.baseline_measurement.quality
    start = _start(job, found, ended, halfwidth)
    if start is None or base is None:
        return
    trial, plan, built = start
    allowed = job.request.budget.max_drop.allowed(base)
    limit = max(allowed - halfwidth, LEAST_DROP * allowed)
    per_stage = int(found.schedule.recovery_steps * ARCHIVE_SHARE / COST / STAGES)
    price, ratio, trainings, front = FIRST, UP, list[Training](), list[Stage]()
    for number in range(STAGES):
        how = Distillation(
            steps=per_stage,
            batch=found.batch,
            seed=job.request.seed + 101 + number,
            bf16=found.bf16,
            augmentation=found.augmentation,
            weight_decay=0.0,
            penalty=price,
        )
        with timed(job, "training for a small archive", 0.6 + 0.2 * number / STAGES):
            assert job.train is not None
            name = key("small archive", plan.digest, number, price, per_stage, found.schedule.recovery_steps)
            if not trained(job, found, built.training.module, how, job.train, name, LATEST):
                break
            trainings = [*trainings, (how, True)]
            stage = _measured(job, found, trial, plan, built, trainings, price)
        kept = stage.drop <= limit
        job.journal.append(
            "price",
            {"plan": stage.trial.plan.digest, "price": price, "drop": stage.drop, "download": _bytes(stage.trial), "kept": kept},
            job.clock.elapsed,
        )
        if kept:
            front = _front([*front, stage])
            _keep(found, front)
        else:
            ratio = FINE
        price = price * ratio if kept else price / ratio


def _front(stages: list[Stage]) -> list[Stage]:
    """The smallest, and the next ones that lose less than all that are smaller; models are large, so only as many as become finalists."""
    front: list[Stage] = []
    for stage in sorted(stages, key=lambda s: (_bytes(s.trial), s.drop)):
        if not front or stage.drop < front[-1].drop:
            front.append(stage)
    return front[:KEPT]


def _keep(found: Found, front: list[Stage]) -> None:
    """Note what would be delivered now, in the place of what was noted before."""
    for trial in found.small:
        del found.quantized[trial.plan.digest]
    found.small = [s.trial for s in front]
    for stage in front:
        digest = stage.trial.plan.digest
        found.quantized[digest], found.recovered[digest], found.training[digest] = stage.built, stage.drop, stage.training


def _bytes(trial: Trial) -> int:
    assert trial.measurement is not None
    return trial.measurement.download_bytes


def _start(job: Job, found: Found, ended: list[Trial], halfwidth: float) -> tuple[Trial, Plan, Built] | None:
    """The plan that is trained on: the structure of the best of the race that kept the allowance, its weights on coarse grids."""
    for trial in ended:
        drop = found.recovered.get(trial.plan.digest)
        plan = _on_grids(found, trial.plan)
        built = found.workshop.build(plan, found.modules.get(trial.plan.digest) if plan.stage("structure") else None)
        built = dataclasses.replace(built, training=built.training.copy())
        if CodedBits(built.training.module).layers:
            return trial, plan, built
    return None


def _on_grids(found: Found, plan: Plan) -> Plan:
    """The plan with a grid of integers, as coarse as is offered up to ``WANTED_RATE``, for every weight where one is offered."""
    choice = found.space.choice(plan)
    if choice is None:
        return plan
    taken = list(choice)
    for place, site in enumerate(found.space.places):
        rates = {i: rate for i, o in enumerate(site.options) for d in o.decisions[-1:] if 0 < (rate := getattr(d.method, "rate", 0.0)) <= WANTED_RATE and not o.factors}
        if site.site.kind == "weight" and rates:
            taken[place] = max(rates, key=lambda i: (rates[i], site.options[i].execute == "integer", -i))
    return found.space.plan(tuple(taken)) if found.space.legal(tuple(taken)) else plan


def _measured(job: Job, found: Found, trial: Trial, plan: Plan, built: Built, trainings: list[Training], price: float) -> Stage:
    """Lower and measure what a stage made, and keep a copy of it. Its latency is that of what it started from, until it is finished."""
    start = time.monotonic()
    own = plan.model_copy(update={"recovery": plan.recovery.model_copy(update={"penalty": price, "steps": sum(how.steps for how, _ in trainings)})})
    kept = Built(own, built.module, built.program, built.training.copy())
    artifact: Artifact = found.workshop.lower(kept)
    quality, _, fidelity = scored(job, found, artifact)
    base = found.baseline_measurement.quality
    assert quality is not None and base is not None and trial.measurement is not None
    measured = measure(job, found.workshop, artifact, trial.measurement.latency_ms, quality, built.program)
    violations = job.request.budget.violations(measured, found.baseline_measurement)
    made = Trial(
        plan=own,
        origin=f"{trial.origin} + a price for coded bits",
        status="missed" if violations else "met",
        measurement=measured,
        fidelity=fidelity,
        violations=violations,
        seconds=round(time.monotonic() - start, 2),
    )
    return Stage(made, base - quality, kept, trainings)
