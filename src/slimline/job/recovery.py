"""The race: promising candidates are trained, and finalists are chosen from them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from slimline.core.interrupts import check
from slimline.core.plan import Plan
from slimline.core.samples import Samples
from slimline.core.trial import Trial
from slimline.job.context import Job, flat
from slimline.job.found import Found, Judged, judged, of_judged, on_holdout, scored, show_best, timed, untrained_drop
from slimline.job.workers import Bench, share
from slimline.measure.certify import Z, expected_drop
from slimline.model.gradual import GradualMasks
from slimline.model.program import Program
from slimline.model.recover import Answers, Distillation, distil, evaluate, learning_rate, seconds_per_step, to_training
from slimline.search.race import TINY, Bar, Entry, Rung, race, rungs
from slimline.search.schedule import EPOCHS, longer_recovery
from slimline.store.cache import key

# Of the recovery's time, for training finalists with their quantizers in the loop: the first of the race, the second, and what lies between them and the safest.
QAT_SHARES = 0.2, 0.1, 0.1
QAT_RATE = 0.25  # of the learning rate
QAT_COST = 1.15  # of a step with quantizers, in steps without
HOPEFUL = 0.8  # nats: a candidate that lost more before recovery is another network, and the schedule does not train those
FULL_RATE = 0.5  # nats, from which on the whole learning rate is used; a milder plan is disturbed by it more than it was by compression
ROUGH = 0.02  # nats that numerics lose before recovery, above which training goes on with the quantizers in the loop
ROUGH_DROP = 0.25  # the same of their drop, as a share of the allowance
ALL_BUT_SURE = 0.95  # chance to pass, of what the race is to be better than
RACE_UNTIL = 0.92  # share of the time, after which no training of the race begins
BESIDE_ARCHIVE = 0.1  # of the recovery's steps, that the race gets where the download is minimised: the rest of the time trains for a small archive
RACE_BESIDE = 0.05  # of the whole job, that this race is taken for where progress is shown
COARSENESS = 5.0  # of the grids that it starts from: about so many of seven bits are given up at once
ARCHIVE_LEAST = 300  # steps of recovery, below which there is none


def recover(job: Job, found: Found, halfwidth: float) -> list[Trial]:
    """The race: promising candidates are trained, as ``found.raced`` has it; returns them (or the untrained ones without training data), the safest first."""
    budget = job.request.budget
    assert found.baseline_measurement.quality is None or job.evaluation is not None
    tried = [t for t in found.trials if t.measurement is not None and not [v for v in t.violations if v.quantity != "drop"]]
    front = _front(job, found, tried)
    if not front or not found.schedule.recovery_steps or job.train is None or found.baseline_measurement.quality is None:
        return front
    allowed = budget.max_drop.allowed(found.baseline_measurement.quality) - halfwidth
    hopeful = _hopeful(job, found, front, allowed)
    if not hopeful:
        return front
    _lengthen(job, found, hopeful)
    entries = [Entry(t.plan, objective(job, found, t), untrained_drop(job, found, t), floor=_floor(job, t)) for t in hopeful]
    plan = rungs(int(usual_steps(job, found) * (1 - sum(QAT_SHARES))), min(len(entries), _lanes(usual_steps(job, found))))
    total = sum(r.entries * r.steps for r in plan)
    done = 0

    def train(entry: Entry, rung: Rung) -> float | None:
        nonlocal done
        with timed(job, "recovering", _reached(job, found, done / max(total, 1))):
            drop = _train(job, found, entry, rung)
        done += rung.steps
        return drop

    def ahead(entries: Sequence[Entry], rung: Rung) -> None:
        tasks = [TrainPlan(e.plan, (*so_far(found, e.plan), _stage(job, found, e, rung)), RACE_UNTIL) for e in entries]
        shares = done / max(total, 1), (done + len(entries) * rung.steps) / max(total, 1)
        share(job, tasks, "recovering", *(_reached(job, found, part) for part in shares))

    raced = race(entries, plan, train, _bar(job, found, front, allowed, halfwidth), ahead)
    found.raced = {e.plan.digest: e for e in raced}
    return [t for t in hopeful if t.plan.digest in found.raced]


def _floor(job: Job, trial: Trial) -> float:
    """The drop to expect on the holdout where training brings back all that was seen to be lost: what differs as often usually loses something elsewhere."""
    alike = trial.fidelity.top1 if trial.fidelity is not None else None
    return 0.0 if alike is None else on_holdout(job, 0.0, 1 - alike).drop


def _reached(job: Job, found: Found, part: float) -> float:
    """The share of the whole job that is done with this part of the race."""
    return 0.4 + (RACE_BESIDE if for_archive(job, found) else 0.4) * part


def _bar(job: Job, found: Found, front: Sequence[Trial], allowed: float, halfwidth: float) -> Bar:
    """What entries are held against, where the interval on the holdout adds ``halfwidth``. What they are to be better than is the best objective of a ``front`` (the safest first) that
    is all but sure to pass untrained. Graded scores differ by little on every sample, and what the interval adds to their drop is mostly no scatter."""
    holdout = job.source.data("holdout")
    spread = TINY
    if job.classes and holdout is not None and job.evaluation is not None:
        _, known = expected_drop(0.0, (halfwidth / Z) ** 2 * len(holdout), len(job.evaluation))
        spread = max(halfwidth / Z * math.sqrt(1 + len(holdout) / known), TINY)
    bar = Bar(allowed, spread)
    sure = [objective(job, found, t) for t in front if bar.chance(untrained_drop(job, found, t)) >= ALL_BUT_SURE]
    return dataclasses.replace(bar, nothing=min(sure, default=objective(job, found, front[0])))


def _lengthen(job: Job, found: Found, hopeful: Sequence[Trial]) -> None:
    """More training steps, where what came before them left more time than the probes let expect, or candidates train faster than the original. In the journal, so that a resumed
    run does as many; plans keep the number that they were found with."""
    assert job.train is not None
    kept, planned = job.journal.last("recovery"), job.journal.last("schedule") or {}
    if kept is None:
        usual = statistics.median([t.seconds for t in found.trials if t.measurement is not None])
        start = time.monotonic()
        step = float(planned.get("step", math.inf))
        step = min(step, _step_seconds(job, found, hopeful)) if math.isfinite(step) else step
        spent = sum(t.seconds for t in found.trials) + time.monotonic() - start
        steps = longer_recovery(
            found.schedule.recovery_steps,
            job.clock.seconds - job.journal.elapsed("timing") - spent,  # not by the clock, which a resumed run has less of
            step,
            candidate=usual,
            finalists=found.schedule.finalists,
            seconds=job.clock.seconds,
            most=EPOCHS * max(len(job.train), found.batch) / found.batch,
        )
        kept = {"steps": steps}
        job.journal.append("recovery", kept, job.clock.elapsed)
    found.schedule = found.schedule.model_copy(update={"recovery_steps": int(kept["steps"])})


def _step_seconds(job: Job, found: Found, hopeful: Sequence[Trial]) -> float:
    """Of training the candidate with the middle number of multiply-adds, of those that lost channels or layers; endless where there is none."""
    assert job.train is not None
    smaller = sorted([(t.measurement.macs, n, t.plan) for n, t in enumerate(hopeful) if t.plan.stage("structure") and t.measurement is not None])
    if not smaller:
        return math.inf
    plan = smaller[len(smaller) // 2][2]
    how = Distillation(steps=0, batch=found.batch, learning_rate=1e-6, bf16=found.bf16, device=job.request.train_device)
    with timed(job, "probing throughput", 0.4):
        student = _laid_out(job, found.workshop.structure(plan))
        to_training(student)
        return seconds_per_step(student, job.model, job.train, how)


def usual_steps(job: Job, found: Found) -> int:
    """Training steps of the race and the finalists: all, but for what training for a small archive gets."""
    return int(found.schedule.recovery_steps * BESIDE_ARCHIVE) if for_archive(job, found) else found.schedule.recovery_steps


def for_archive(job: Job, found: Found) -> bool:
    """Whether there will be training for a small archive: the download is minimised, and there is something to train on and to judge by."""
    enough = found.schedule.recovery_steps >= ARCHIVE_LEAST
    return job.request.budget.minimize == "download" and job.train is not None and enough and found.baseline_measurement.quality is not None


def _lanes(steps: int) -> int:
    """How many candidates enter the race: each needs enough steps to show what it can do."""
    return 6 if steps >= 5000 else 4 if steps >= 2000 else 3 if steps >= 300 else 2


def objective(job: Job, found: Found, trial: Trial) -> float:
    """What is minimised, of a measured trial."""
    assert trial.measurement is not None
    return job.request.budget.objective(trial.measurement, found.baseline_measurement)


def _front(job: Job, found: Found, trials: list[Trial]) -> list[Trial]:
    """Trials that none beats in objective and measured loss, the safest first."""
    ranked = sorted(trials, key=lambda t: (t.measured_loss if t.measured_loss is not None else 0.0, objective(job, found, t)))
    front: list[Trial] = []
    for trial in ranked:
        if not front or objective(job, found, trial) < 0.995 * objective(job, found, front[-1]):
            front.append(trial)
    return front


def _hopeful(job: Job, found: Found, front: list[Trial], allowed: float) -> list[Trial]:
    """The part of a front (the safest first) that training may decide about: what keeps the allowance untrained needs none, but for the most daring of these. Nor does the original."""
    hopeful = [t for t in front if (t.measured_loss or 0.0) <= HOPEFUL] or front[:1]
    hopeful = hopeful[max((i for i, t in enumerate(hopeful) if untrained_drop(job, found, t) <= allowed), default=0) :]
    return [t for t in hopeful if t.plan.decisions]


def _train(job: Job, found: Found, entry: Entry, rung: Rung) -> float | None:
    """One rung of one entry, taken up where it was, or from the cache of an earlier run; the drop then to expect on the holdout.

    The structure is trained in float (with its batch norms) first; where the numerics are rough, the
    later rungs train the exported graph with the quantizers in the loop. What has whole layers is trained
    with its quantizers from the start: in float there is nothing to bring back.
    """
    digest = entry.plan.digest
    stage = _stage(job, found, entry, rung)
    how, with_quantizers = stage.how, stage.with_quantizers
    assert job.evaluation is not None and job.train is not None and found.baseline_measurement.quality is not None
    if digest not in found.modules:
        found.modules[digest] = found.workshop.structure(entry.plan)
    module = found.modules[digest]
    if with_quantizers:
        if digest not in found.quantized:
            found.quantized[digest] = found.workshop.build(entry.plan, module if entry.plan.stage("structure") else None)
        module = found.quantized[digest].training.module
    else:
        module = _laid_out(job, module)
    dense = found.quantized[digest].program if with_quantizers else None
    if not trained(job, found.answers, module, how, job.train, stage.name, RACE_UNTIL, dense):
        return None
    found.training.setdefault(digest, []).append((how, with_quantizers))
    now = found.judged[digest] = _judged_now(job, found, entry, module, with_quantizers)
    assert now.quality is not None
    drop = found.baseline_measurement.quality - now.quality if now.scores is None else of_judged(job, found, now).drop
    if not with_quantizers:
        drop += _rounding_drop(found, entry.plan)
    job.journal.append("rung", {"plan": digest, "steps": entry.steps + rung.steps, "drop": drop, "with_quantizers": with_quantizers}, job.clock.elapsed)
    found.recovered[digest] = drop
    trial = next(t for t in found.trials if t.plan.digest == digest)
    measured_as_stored = with_quantizers or not entry.plan.stage("numerics")  # a float drop beside a quantized file's bytes would promise too much
    if measured_as_stored and trial.measurement is not None:
        show_best(job, found, trial.model_copy(update={"measurement": trial.measurement.model_copy(update={"quality": now.quality})}))
    return drop


@dataclass(frozen=True)
class Stage:
    """One training of a plan's model. ``name``: of the cache entry that holds the weights after it."""

    name: str
    how: Distillation
    with_quantizers: bool


@dataclass(frozen=True)
class TrainPlan:
    """A worker's task: the last of ``stages``, from where those before it left the plan's model. ``latest``: share of the time, after which it does not begin."""

    plan: Plan
    stages: tuple[Stage, ...]
    latest: float

    @property
    def name(self) -> str:
        return self.stages[-1].name

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.stages[:-1])

    def __str__(self) -> str:
        return f"training candidate {self.plan.digest[:8]}"

    def work(self, bench: Bench) -> None:
        job, workshop = bench.job, bench.workshop
        samples = job.train if job.train is not None else job.calibration
        assert samples is not None
        answers = bench.kept.setdefault("answers", Answers())
        module, built = workshop.structure(self.plan), None
        for stage in self.stages:
            if stage.with_quantizers:
                built = built or workshop.build(self.plan, module if self.plan.stage("structure") else None)
            net = built.training.module if built is not None else _laid_out(job, module)
            if not trained(job, answers, net, stage.how, samples, stage.name, self.latest, None if built is None else built.program):
                return


def _stage(job: Job, found: Found, entry: Entry, rung: Rung) -> Stage:
    """How an entry is trained in a rung."""
    digest = entry.plan.digest
    with_quantizers = not entry.plan.stage("structure") or (entry.steps > 0 and _rough(job, found, entry.plan))
    how = Distillation(
        steps=rung.steps,
        batch=found.batch,
        seed=job.request.seed + entry.steps,
        bf16=found.bf16,
        classes=job.classes,
        device=job.request.train_device,
        augmentation=found.augmentation,
        learning_rate=_rate(job, found, digest),
    )
    how = dataclasses.replace(through_quantizers(how, job.model), gradual=masks_grow(found, entry.plan)) if with_quantizers else how
    return Stage(_rung_name(found, digest, entry.steps + rung.steps, with_quantizers), how, with_quantizers)


def so_far(found: Found, plan: Plan) -> tuple[Stage, ...]:
    """What a plan went through in the race."""
    stages: list[Stage] = []
    steps = 0
    for how, with_quantizers in found.training.get(plan.digest, ()):
        steps += how.steps
        stages.append(Stage(_rung_name(found, plan.digest, steps, with_quantizers), how, with_quantizers))
    return tuple(stages)


def _rung_name(found: Found, digest: str, steps: int, with_quantizers: bool) -> str:
    return key("recovered", digest, steps, found.schedule.recovery_steps, with_quantizers)


def _laid_out(job: Job, module: nn.Module) -> nn.Module:
    """As it trains fastest."""
    return module.to(memory_format=torch.channels_last) if job.example.tensors[0].ndim == 4 else module  # type: ignore[call-overload]  # missing in torch's annotations


def through_quantizers(how: Distillation, model: nn.Module) -> Distillation:
    """The same with quantizers in the loop: gentler, and without decay, which would move weights between their levels."""
    return dataclasses.replace(how, learning_rate=learning_rate(model) * QAT_RATE, weight_decay=0.0)


def _rate(job: Job, found: Found, digest: str) -> float:
    """Learning rate in proportion to the root of what was lost."""
    trial = next(t for t in found.trials if t.plan.digest == digest)
    return rate_for(job.model, trial.measured_loss or 0.0)


def rate_for(model: nn.Module, lost: float) -> float:
    """Learning rate after a loss of ``lost`` nats; rounding can put that just below zero."""
    return learning_rate(model) * min(1.0, max(math.sqrt(max(lost, 0.0) / FULL_RATE), 0.1))


def masks_grow(found: Found, plan: Plan) -> bool:
    """Whether masks grow in the next training with quantizers: where the plan says so, and in the first."""
    return plan.recovery.gradual and not any(with_quantizers for _, with_quantizers in found.training.get(plan.digest, ()))


def trained(job: Job, answers: Answers, module: nn.Module, how: Distillation, samples: Samples, name: str, latest: float, dense: Program | None = None) -> bool:
    """Train a module in place, or load what an earlier run made of it; ``False`` where there is no time. ``dense``: the float program of a training form, from whose weights masks grow."""
    stored = job.cache.get(name)
    if stored is not None:
        module.load_state_dict(stored[0])
        return True
    if job.clock.over(latest):
        job.cut("training: no time was left for all of it")
        return False
    is_graph = isinstance(module, torch.fx.GraphModule)
    before = {parameter: value.detach().clone() for parameter, value in module.state_dict().items()}
    if not is_graph:
        to_training(module)

    def over() -> bool:
        check()
        return job.clock.over(latest + 0.02)

    try:
        done = distil(
            module,
            module.parameters(),
            job.model,
            samples,
            how,
            loss=job.loss if job.train is not None else None,
            answers=answers,
            gradual=GradualMasks(module, dense.parameters(), how.steps) if how.gradual and dense is not None else None,
            stop=over,
        )
    except KeyboardInterrupt:  # half a training is worse than none: what was good before is what is kept
        module.load_state_dict(before)
        raise
    finally:
        if not is_graph:
            module.eval()
    if done == how.steps:
        job.cache.put(name, module.state_dict())
    else:
        job.cut(f"training: {done} of {how.steps} steps of a candidate were done before its time was up")
    return True


def _numerics_loss(found: Found, plan: Plan) -> float:
    """What the plan's numerics lost before training: their part, as it was predicted, of the loss that was measured."""
    choice = found.space.choice(plan)
    measured = next(t for t in found.trials if t.plan.digest == plan.digest).measured_loss
    if choice is None:
        return measured or 0.0
    parts = [(p.site.kind, p.options[c].loss) for p, c in zip(found.space.places, choice, strict=True)]
    numerics, whole = sum(loss for kind, loss in parts if kind == "weight"), found.space.loss(choice)
    return numerics if measured is None or whole <= 0 else max(measured, 0.0) * min(1.0, numerics / whole)


def _rough(job: Job, found: Found, plan: Plan) -> bool:
    """Whether its numerics lose enough to be trained against."""
    base = found.baseline_measurement.quality
    return _numerics_loss(found, plan) > ROUGH or (base is not None and _rounding_drop(found, plan) > ROUGH_DROP * job.request.budget.max_drop.allowed(base))


def _rounding_drop(found: Found, plan: Plan) -> float:
    """What rounding will add to the drop of a structure that was trained in float: its part of the drop before training."""
    trial = next(t for t in found.trials if t.plan.digest == plan.digest)
    base, m = found.baseline_measurement.quality, trial.measurement
    if base is None or m is None or m.quality is None or not trial.measured_loss:
        return 0.0
    return max(base - m.quality, 0.0) * min(1.0, _numerics_loss(found, plan) / trial.measured_loss)


def _judged_now(job: Job, found: Found, entry: Entry, module: nn.Module, with_quantizers: bool) -> Judged:
    """On the evaluation samples: the artefact once the quantizers are trained with, the float structure before."""
    assert job.evaluation is not None
    if with_quantizers:
        return scored(job, found, found.workshop.lower(found.quantized[entry.plan.digest]))
    return judged(job, found, flat(evaluate(module, job.evaluation, bf16=found.bf16)))
