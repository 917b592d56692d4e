"""``--references full``: every reference that can be trained gets the training that the result had, after ``--time``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from slimline.core.plan import Plan
from slimline.core.result import Reference
from slimline.errors import SlimlineError
from slimline.job.certificate import Outcome
from slimline.job.context import Job
from slimline.job.found import Found, Training, scored, timed
from slimline.job.recovery import rate_for, through_quantizers, trained
from slimline.job.references import Compared, parameters_of, reference
from slimline.job.search import divergence_of, loss_samples, original_answers
from slimline.search.workshop import Built
from slimline.store.cache import key


def recover_references(job: Job, found: Found, outcome: Outcome, compared: Sequence[Compared], measured: Mapping[str, Reference]) -> dict[str, Reference]:
    """``measured``, with those references that training made better trained.

    A reference gets the steps that the result's plan was trained with, in float and with quantizers in the loop, at the learning rate that its
    own loss calls for. What its training makes worse on the evaluation samples stays untrained, as with the result. Values are no
    matter for time: latencies are those that were measured beside the result.
    """
    trainings = found.training.get(outcome.finalist.trial.plan.digest, [])
    if not trainings:
        job.note("--references full: the result was not trained, so neither are the references")
        return dict(measured)
    recovered = dict(measured)
    for c in compared:
        if c.plan is None:
            continue
        with timed(job, f"recovering the reference {c.name}", 0.99):
            try:
                better = _recovered(job, found, c, c.plan, trainings)
            except SlimlineError as error:
                job.note(f"the recovery of the reference {c.name}: {error.message}")
                continue
            recovered[c.name] = reference(job, found, outcome, better, measured[c.name].latency_ms)
    if any(c.plan is None for c in compared):
        job.note("the recovery of plain int8: what the runtime's own quantizer makes cannot be trained")
    return recovered


def _recovered(job: Job, found: Found, compared: Compared, plan: Plan, trainings: Sequence[Training]) -> Compared:
    samples = loss_samples(job, found)[: found.schedule.samples_loss]  # a learning rate is chosen by it: few will do
    lost = divergence_of(job, compared.artifact, samples, original_answers(job, found, samples))
    module = found.workshop.structure(plan) if plan.stage("structure") else None
    built: Built | None = None
    net: nn.Module
    steps = 0
    for how, with_quantizers in trainings:
        if module is None or (with_quantizers and plan.stage("numerics")):
            built = built if built is not None else found.workshop.build(plan, module)
            own, net = (how if with_quantizers else through_quantizers(how, job.model)), built.training.module
        else:
            own, net = (how if with_quantizers else replace(how, learning_rate=rate_for(job.model, lost))), module
        on = job.train if job.train is not None else job.calibration
        assert on is not None  # the result was trained on it
        steps += how.steps
        if not trained(job, found.answers, net, own, on, key("reference", plan.digest, steps, own.learning_rate, built is not None), math.inf):
            raise SlimlineError("its training ended early.")
    built = built if built is not None else found.workshop.build(plan, module)
    artifact = found.workshop.lower(built)
    before, after = scored(job, found, compared.artifact)[0], scored(job, found, artifact)[0]
    if before is not None and after is not None and after < before:
        return replace(compared, note=f"{steps:,} steps of recovery made it worse and were undone")
    return replace(compared, artifact=artifact, parameters=parameters_of(built.program), steps=steps)
