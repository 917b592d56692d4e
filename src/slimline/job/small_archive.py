"""Training for a small archive: a coded bit costs more and more loss, for as long as the accuracy allows it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from slimline.core.plan import Plan
from slimline.core.trial import Trial
from slimline.job.context import Job
from slimline.job.found import Found, Training, discordance_of, measure, scored, show_best, timed
from slimline.job.recovery import COARSENESS, objective, trained
from slimline.model.coded import CodedBits, coarse_biases, settle_biases
from slimline.model.recover import Distillation, learning_rate, seconds_per_step
from slimline.search.drops import believed_by_size
from slimline.search.race import TINY, Bar, worth
from slimline.search.schedule import coarse
from slimline.search.workshop import Built
from slimline.store.cache import key

FEWEST, MOST, MORE = 4, 16, 8  # stages that are planned, and that follow at most where they took less time than that
STAGE_STEPS = 150  # that a stage should have, before there are more of them
UNEVEN = 1.3  # what a step takes in the long run, of the fastest in the probe
STAGE_EPOCHS = 15  # that a stage has at most
FIRST = 1.0  # nats for a mean coded bit
COARSE, FINE = 2.0, 2**0.5  # what the price changes by: until it first turns, and from then on
CAREFUL_FROM = 0.6  # of the stages, from which on the drop keeps a margin, too
COOLING_FROM, COOLEST = 0.4, 0.1  # of the stages, from which on each one's learning rate is lower, and what is left of it at the end
CLEARLY = 0.8  # standard errors beyond what a stage may lose, from which on the next one starts at the last that kept it
MARGIN = 0.7  # standard errors of the drop between the search samples and the holdout: three of four pass that are as good as they seem
LATEST = 0.82  # of the time
HELD, KEPT = 8, 4  # stages that may become finalists as more is known, and that do
LEAST_CHANCE = 0.01  # to keep the allowance, of a stage that becomes a finalist
LEAST_DROP = 0.25  # of the allowance, that is used where the holdout is so small that the certificate's half-width takes all


@dataclass
class Stage:
    """What one stage came to. ``built``: without the channels that add nothing any more. ``weights``: the state of all that was trained, which training can go on from."""

    trial: Trial
    drop: float
    built: Built
    training: list[Training]
    scores: torch.Tensor | None = None
    name: str = ""
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class BitPrice:
    """Nats for a mean coded bit: more after a stage that kept its limit, less after one that did not; by small steps once it has turned, but after one that clearly did not.

    Example:
        >>> price, seen = BitPrice(), list[float]()
        >>> for kept, clearly in ((True, False), (True, False), (False, False), (True, False), (False, True)):
        ...     price.move(kept, clearly)
        ...     seen.append(round(price.value, 2))
        >>> seen
        [2.0, 4.0, 2.83, 4.0, 2.0]
    """

    value: float = FIRST
    ratio: float = COARSE
    before: bool | None = None

    def move(self, kept: bool, clearly: bool = False) -> None:
        if self.before not in (None, kept):
            self.ratio = FINE
        self.value, self.before = self.value * self.ratio if kept else self.value / (COARSE if clearly else self.ratio), kept


def train_for_archive(job: Job, found: Found, halfwidth: float) -> None:
    """Train the model under a price of its coded bits; ``found.small`` are then those stages that the certificate's sequence gains the most by, the smallest first.

    The price is the multiplier of a constraint: it rises after a stage that kept the drop within the allowance less the certificate's ``halfwidth``, and falls after one that
    did not (dual ascent). Each stage goes on from the one before; where that lost clearly more than it might, from the last one that did not, as it was
    measured (with its biases on their grids), at half the price: what a price does shows late, and zeros do not come back. What a stage made is measured as an artefact, with its real archive.
    The last stages keep a margin as well: what just keeps the allowance fails its test as often as not, and a few hundred bytes more are a small price. Their learning rate is lower, too: each stage
    begins by losing what the one before had settled.

    References:
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, section 2 (the penalty).
        Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.4 (prices of constraints).
    """
    base = found.baseline_measurement.quality
    start = _start(found)
    if start is None or base is None:
        return
    plan, built = start
    allowed = job.request.budget.max_drop.allowed(base)

    def limit(margin: float = 0.0) -> float:
        """Of a drop on the search samples."""
        return max(allowed - halfwidth - margin, LEAST_DROP * allowed)

    planned, steps = _stages(job, found, built)
    price, trainings, held, seen = BitPrice(), list[Training](), list[Stage](), list[tuple[str, int, float, float]]()
    last_kept: Stage | None = None
    number, stages, begins, forked = 0, planned, "", False
    while number < stages:
        begun = job.clock.elapsed
        how = _how(job, found, price.value)
        how = replace(how, steps=steps, seed=job.request.seed + 101 + number, learning_rate=how.learning_rate * cooled(number, planned))
        with timed(job, "training for a small archive", 0.45 + 0.4 * number / stages):
            assert job.train is not None
            name = key("small archive", plan.digest, number, planned, price.value, steps, found.schedule.recovery_steps, *((begins,) if forked else ()))
            if not trained(job, found.answers, built.training.module, how, job.train, name, LATEST) or name not in job.cache:
                break  # what the clock cut off a run that goes on could not make again
            trainings = [*trainings, (how, True)]
            stage = replace(_measured(job, found, plan, built, trainings, price.value, (number + 1) * steps), name=name)
        error = _standard_error(job, found, stage)
        beyond = stage.drop - limit(MARGIN * error if number >= CAREFUL_FROM * planned else 0.0)
        kept, clearly = beyond <= 0, stage.drop - limit() > CLEARLY * error  # a margin is worth some bytes, not what was trained since
        fits = not [v for v in stage.trial.violations if v.quantity not in ("drop", "latency")]  # the one decides by its chance, the other is not known yet
        told = {"plan": stage.trial.plan.digest, "price": price.value, "drop": stage.drop, "download": _bytes(stage.trial), "kept": kept, "fits": fits}
        show_best(job, found, stage.trial, with_latency=False)
        job.journal.append("price", {**told, "seconds": round(job.clock.elapsed - begun, 2)}, job.clock.elapsed)
        seen.append((stage.trial.plan.digest, _bytes(stage.trial), stage.drop, _variance(job, found, stage)))
        digests, *columns = zip(*seen, strict=True)
        beliefs = dict(zip(digests, believed_by_size(*columns), strict=True))
        if fits:
            held = _front(job, found, [*held, replace(stage, weights={})], beliefs, limit(), HELD)
            _keep(found, _front(job, found, held, beliefs, limit(), KEPT), beliefs)
        price.move(kept, clearly)
        begins = name
        if kept:
            last_kept = stage
        elif last_kept is not None and clearly:
            built.training.module.load_state_dict(last_kept.weights)
            trainings, begins, forked = last_kept.training, last_kept.name, True
        number += 1
        if number == planned:
            stages += _more(job)


def cooled(number: int, planned: int) -> float:
    """The share of the learning rate that stage ``number`` of ``planned``, counted from 0, has left; those that follow have as much as the last.

    Example:
        >>> [round(cooled(number, planned=10), 2) for number in (0, 4, 5, 7, 9, 12)]
        [1.0, 1.0, 0.82, 0.46, 0.1, 0.1]
    """
    first, last = COOLING_FROM * planned, planned - 1
    return 1 - (1 - COOLEST) * min(max((number - first) / max(last - first, TINY), 0.0), 1.0)


def _variance(job: Job, found: Found, stage: Stage) -> float:
    """Of the drop that was seen, around the true one."""
    assert job.evaluation is not None
    return discordance_of(job, found, stage.scores) / len(job.evaluation)


def _standard_error(job: Job, found: Found, stage: Stage) -> float:
    """Of the drop on the holdout around the one that was seen."""
    holdout = job.source.data("holdout")
    if holdout is None or job.evaluation is None:
        return 0.0
    return math.sqrt(_variance(job, found, stage) * (1 + len(job.evaluation) / len(holdout)))


def _how(job: Job, found: Found, price: float) -> Distillation:
    return Distillation(
        steps=0,
        batch=found.batch,
        bf16=found.bf16,
        classes=job.classes,
        device=job.request.train_device,
        augmentation=found.augmentation,
        learning_rate=learning_rate(job.model),
        weight_decay=0.0,
        penalty=price,
    )


def _stages(job: Job, found: Found, built: Built) -> tuple[int, int]:
    """How many stages, and the steps of each: what there is time for by a probe of one step, and by what candidates took to be measured; a run that goes on keeps its own."""
    kept = job.journal.last("archive schedule")
    if kept is not None:
        return int(kept["stages"]), int(kept["steps"])
    assert job.train is not None
    with timed(job, "probing throughput", 0.45):
        step = seconds_per_step(built.training.copy().module, job.model, job.train, replace(_how(job, found, FIRST), learning_rate=1e-6))
    measured = statistics.median([t.seconds for t in found.trials if t.measurement is not None] or [0.0])
    stages, steps = stages_for(LATEST * job.clock.seconds - job.clock.elapsed, UNEVEN * step, measured, STAGE_EPOCHS * len(job.train) / found.batch)
    job.journal.append("archive schedule", {"stages": stages, "steps": steps, "step": step, "measured": measured}, job.clock.elapsed)
    return stages, steps


def _more(job: Job) -> int:
    """Stages that fit into what is left when all that were planned are done, where none takes longer than the longest so far; a run that goes on keeps its own."""
    kept = job.journal.last("more stages")
    if kept is None:
        longest = max(float(e.get("seconds", 0.0)) for e in job.journal.events("price"))
        left = max(LATEST * job.clock.seconds - job.clock.elapsed, 0.0)
        kept = {"stages": int(min(left / max(longest, 1e-9), MORE)), "longest": longest}
        job.journal.append("more stages", kept, job.clock.elapsed)
    return int(kept["stages"])


def stages_for(left: float, step: float, measured: float, most: float) -> tuple[int, int]:
    """Stages, and the steps of each, ``most`` at most. Seconds: ``left``, of a ``step``, and of a stage being ``measured``.

    Example:
        >>> stages_for(240, 0.05, measured=3.0, most=6_000)
        (16, 200)
    """
    stages = int(min(max(left / (STAGE_STEPS * step + measured), FEWEST), MOST))
    steps = coarse(min((left / stages - measured) / step, most))
    return (stages, steps) if steps else (0, 0)


def _front(job: Job, found: Found, stages: Sequence[Stage], beliefs: Mapping[str, float], limit: float, most: int) -> list[Stage]:
    """Those by which the certificate's sequence gains the most, the smallest first; models are large, so no more than ``most``.

    A stage's chance is that of keeping ``limit``, by what it is believed to have lost and by how much it differs from the original. By the changed answers alone, LeNet-5's last stage of 4.4 KB,
    which had lost 0.08 points, was left out for one of 3.1 KB that had lost 0.26 and changed no more; by the drop that was seen, one of 2.4 KB, the luckiest of seven of that size, left nothing between
    it and 26 KB, and failed.
    """
    nothing = job.request.budget.objective(found.baseline_measurement, found.baseline_measurement)
    prospects = [
        (objective(job, found, s.trial), Bar(limit, max(_standard_error(job, found, s), TINY)).chance(beliefs[s.trial.plan.digest]), s) for s in stages
    ]
    front = sorted((p for p in prospects if p[1] >= LEAST_CHANCE), key=lambda p: p[:2])

    def all_but(left_out: Stage | None) -> float:
        return worth(((price, chance) for price, chance, stage in front if stage is not left_out), nothing)

    while front:
        gained, least = max((all_but(p[2]), n) for n, p in enumerate(front))
        if len(front) <= most and (most > KEPT or gained < all_but(None)):
            break  # of what is held for later also what is worth nothing now
        del front[least]
    return [stage for *_, stage in front]


def _keep(found: Found, front: list[Stage], beliefs: Mapping[str, float]) -> None:
    """Note what would be delivered now, in the place of what was noted before."""
    for trial in found.small:
        del found.quantized[trial.plan.digest]
    found.small = [s.trial for s in front]
    found.small_drops = {t.plan.digest: beliefs[t.plan.digest] for t in found.small}
    for stage in front:
        digest = stage.trial.plan.digest
        found.quantized[digest], found.recovered[digest], found.training[digest] = stage.built, stage.drop, stage.training


def _bytes(trial: Trial) -> int:
    assert trial.measurement is not None
    return trial.measurement.download_bytes


def _start(found: Found) -> tuple[Plan, Built] | None:
    """What is trained: the model's whole structure with all weights on coarse grids; ``None`` where no weight can be.

    Not a narrower structure: what the race's winners lose by it is the allowance that the price is to spend. Channels that add nothing in the end are taken out of what is kept.
    """
    plan = _on_grids(found)
    built = found.workshop.build(plan)
    built = replace(built, training=built.training.copy())
    coarse_biases(built.training, built.program.weights.values())
    return (plan, built) if CodedBits(built.training.module).layers else None


def _on_grids(found: Found) -> Plan:
    """For every weight the coarsest grid up to ``COARSENESS`` that is offered, in integer kernels where it can be."""
    taken = list(found.space.nothing)
    for number, place in enumerate(found.space.places):
        grids = {i: c for i, o in enumerate(place.options) if (c := o.coarseness) is not None and c <= COARSENESS}
        if place.site.kind == "weight" and grids:
            taken[number] = max(grids, key=lambda i: (grids[i], place.options[i].execute == "integer", place.options[i].format.bits, -i))
    return found.space.plan(tuple(taken))


def _measured(job: Job, found: Found, plan: Plan, built: Built, trainings: list[Training], price: float, steps: int) -> Stage:
    """Lower and measure what a stage made, and keep a copy of it. Its latency is the original's until it is finished. ``steps``: of all stages so far, so that no two plans are alike."""
    start = time.monotonic()
    own = plan.model_copy(update={"recovery": plan.recovery.model_copy(update={"penalty": price, "steps": steps})})
    whole = Built(own, built.module, built.program, built.training.copy())
    settle_biases(whole.training)  # what is read from the training form is then what is stored
    kept = found.workshop.without_unread(whole)
    artifact = found.workshop.lower(kept)
    quality, scores, fidelity = scored(job, found, artifact)
    base = found.baseline_measurement.quality
    assert quality is not None and base is not None
    measured = measure(job, found.workshop, artifact, found.baseline_measurement.latency_ms, quality, kept.program, exact=True)
    violations = job.request.budget.violations(measured, found.baseline_measurement)
    made = Trial(
        plan=own,
        origin="a price for coded bits",
        status="missed" if violations else "met",
        measurement=measured,
        fidelity=fidelity,
        violations=violations,
        seconds=round(time.monotonic() - start, 2),
    )
    return Stage(made, base - quality, kept, trainings, scores, weights=whole.training.module.state_dict())
