"""The search: options measured, candidates stitched and measured, the promising ones recovered."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from slimline.core.budget import Quantity
from slimline.core.contracts import Artifact
from slimline.core.plan import Method, Plan, Recovery
from slimline.core.progress import Best
from slimline.core.registry import find
from slimline.core.result import Schedule
from slimline.core.samples import Samples
from slimline.core.site import Refusal, Site
from slimline.core.trial import Agreement, Latency, Measurement, Trial
from slimline.errors import BudgetNotMet, SlimlineError
from slimline.job.context import Job, as_outputs, flat
from slimline.measure.agreement import agreement
from slimline.measure.size import download_bytes
from slimline.model.augment import Augmentation, find_augmentation
from slimline.model.recover import Distillation, distil, evaluate, seconds_per_step
from slimline.model.sites import find_sites
from slimline.numerics.divergence import divergence
from slimline.report.sentence import in_points
from slimline.search.race import Entry, Rung, race, rungs
from slimline.search.schedule import Probe, make_schedule
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Option, Place, Space, layers_of
from slimline.search.strategies.replay import Replay, planned
from slimline.search.timing import measure_timing
from slimline.search.workshop import Built, Workshop
from slimline.store.cache import key

BF16_GAIN = 1.3  # how much faster a step must be before half of the mantissa is given up
QAT_SHARE = 0.15  # of the recovery steps, with the quantizers in the loop
QAT_RATE = 0.25  # of the learning rate
TRIAL_SECONDS = 0.4
LEAST_TRIALS = 3  # candidates that are tried whatever the clock says
OPTIONS_SHARE = 0.2  # of the time, that measuring options may take
FACTORED_SHARE = 0.05  # of the time, that options of factored layers may take to measure
RECOVERS = 0.35  # of a drop before recovery is left after it, as first seen on ResNet-20; decides who enters the race, not who wins it
HOPEFUL = 0.8  # nats: a candidate that lost more before recovery is another network, and the schedule does not train those
FULL_RATE = 0.25  # nats, from which on the whole learning rate is used; a milder plan is disturbed by it more than it was by compression
ROUGH = 0.02  # nats that numerics lose before recovery, above which training goes on with the quantizers in the loop
SMALL_BATCH = 4_000  # training samples: below, batches of 64
CALIBRATION_STEPS = 400  # of label-free distillation on calibration samples, where there is no training data
CALIBRATION_BATCH = 16


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
    trials: list[Trial] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    quantized: dict[str, Built] = field(default_factory=dict)


@contextlib.contextmanager
def timed(job: Job, name: str, fraction: float) -> Iterator[None]:
    """A stage: announced, and its seconds counted."""
    job.progress.stage(name, fraction, max(0.0, job.clock.left))
    start = time.monotonic()
    try:
        yield
    finally:
        job.spent[name] = round(job.spent.get(name, 0.0) + time.monotonic() - start, 2)


def prepare(job: Job) -> Found:
    """Sites, schedule, option database, timing: everything before the first candidate.

    Raises:
        BudgetNotMet: a budget below what any plan can reach.
    """
    budget = job.request.budget
    with timed(job, "looking at the model", 0.01):
        sites, refused = find_sites(job.model, job.example)
        sites = tuple(s for s in sites if any(s.kind in m.kinds for n, m in job.methods.items() if n != "keep"))
        workshop = Workshop(job.model, job.example, job.calibration, sites, job.target, job.loss if job.train is not None else None, job.request.seed)
        baseline = job.target.lower(workshop.program, job.example)
        (latency,) = job.target.latency([baseline], job.example, batch=budget.batch, threads=budget.threads, seconds=1.0)
        samples = job.evaluation if job.evaluation is not None else job.example
        original = evaluate(job.model, samples)
        quality, scores = job.score(original, samples, original) if job.evaluation is not None else (None, None)
        measured = measure(job, workshop, baseline, latency, quality, workshop.program)
    if quality is not None:
        budget.max_drop.allowed(quality)
    offered = {s.id: offers(job, s) for s in sites}
    schedule, bf16, batch = _schedule(job, workshop, sum(map(len, offered.values())))
    offered = offered if job.request.plan is not None else _affordable(job, offered)
    workshop.moments = any(m.stage == "structure" for name, options in offered.items() if "#" not in name for m in options)
    _announce(job, workshop, sites, refused, measured, schedule)
    with timed(job, "measuring options", 0.08):
        places, more = _option_database(job, workshop, sites, offered, schedule.samples_loss)
    with timed(job, "timing layers", 0.18):
        timing = _timing(job, workshop, baseline, places)
    overhead, per_layer = _overhead(workshop, baseline)
    space = Space(
        job.fingerprint,
        tuple(places),
        layers_of(workshop.program.weights, places),
        timing,
        overhead,
        per_layer,
        0,
        Recovery(steps=schedule.recovery_steps, batch=batch),
        job.request.seed,
    )
    _check_reachable(job, space)
    space = space if job.request.plan is not None else space.pruned()
    augmentation = Augmentation()
    if schedule.recovery_steps and job.evaluation is not None:
        with timed(job, "looking for safe augmentations", 0.2):
            augmentation = (
                find_augmentation(lambda s: job.model_quality(job.model, s, original, bf16=bf16)[0], job.evaluation[:2_000], few=2_000, seed=job.request.seed)
                if job.evaluation.targets is not None
                else Augmentation()
            )
            if job.train is None:
                augmentation = Augmentation(augmentation.flip, augmentation.shift, mix=True)
    return Found(workshop, space, [*refused, *more], schedule, baseline, measured, original, scores, bf16, batch, augmentation)


def offers(job: Job, site: Site) -> list[Method]:
    """Every option of the allowed methods at a site, ``keep`` left out (it is always there); of a plan that is carried out, its own."""
    if job.request.plan is not None:
        return planned(job.request.plan, site)
    return [o for n, m in job.methods.items() if n != "keep" and site.kind in m.kinds for o in m.candidates(site)]


def _affordable(job: Job, offered: dict[str, list[Method]]) -> dict[str, list[Method]]:
    """The offers that there is time to measure: first factored layers go, then every second width and all but the first setting of each number of bits; said in the report."""
    kept = job.journal.last("schedule")
    assert kept is not None
    forward, samples = float(kept["forward"]), int(kept["schedule"]["samples_loss"])

    def seconds(offers: dict[str, list[Method]], share: float) -> float:
        """``share``: of a forward that one option computes again, from its layer on."""
        return sum(len(options) for options in offers.values()) * forward * samples * share

    structural = {s: [m for m in options if "#" not in s and m.stage == "structure"] for s, options in offered.items()}
    if (needed := seconds(structural, 1.0)) > FACTORED_SHARE * job.clock.seconds:
        job.note(f"low_rank: measuring its options would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have it tried")
        offered = {s: [m for m in options if m not in structural[s]] for s, options in offered.items()}
    if (needed := seconds(offered, 0.6)) > OPTIONS_SHARE * job.clock.seconds:
        job.note(f"half of all options: measuring them would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have them tried")
        offered = {s: options[1::2] if "#" in s and len(options) > 2 else _first_of_each(options) for s, options in offered.items()}
    return offered


def _first_of_each(options: list[Method]) -> list[Method]:
    """The first option of each method and number of bits."""
    best: dict[tuple[str, object], Method] = {}
    for method in options:
        best.setdefault((method.name, getattr(method, "bits", None)), method)
    return list(best.values())


def _announce(job: Job, workshop: Workshop, sites: tuple[Site, ...], refused: tuple[Refusal, ...], measured: Measurement, schedule: Schedule) -> None:
    kinds = {k: sum(s.kind == k for s in sites) for k in ("weight", "channels", "block")}
    quality = "no labelled data" if measured.quality is None else f"{job.metric_name} {measured.quality:.4f}"
    recovery = (
        f"{schedule.recovery_steps} training steps"
        if schedule.recovery_steps
        else "no training (no train split)"
        if job.train is None
        else "no training (too little time)"
    )
    job.progress.found(
        (
            f"{job.source.name}: {measured.parameters:,} parameters, {measured.macs / 1e6:.1f} M multiply-adds, {measured.size_bytes / 1000:,.0f} KB, {measured.latency_ms.median:.3f} ms, {quality}",
            f"{kinds['weight']} weights to quantize, {kinds['channels']} sets of channels to prune, {kinds['block']} blocks to drop; {len(refused)} places left alone, with reasons",
            f"for {job.target.name} {type(job.target).version()}, in {job.clock.seconds:.0f} s: {schedule.candidates} candidates, {recovery}, {schedule.finalists} finalists",
        )
    )


def _schedule(job: Job, workshop: Workshop, options: int) -> tuple[Schedule, bool, int]:
    """From the journal if it is there (a resumed run keeps it), else from a probe."""
    kept = job.journal.last("schedule")
    if kept is not None:
        return Schedule.model_validate(kept["schedule"]), bool(kept["bf16"]), int(kept["batch"])
    with timed(job, "probing throughput", 0.04):
        source = job.calibration if job.calibration is not None else job.example
        few = source[: min(len(source), 64)]
        with torch.inference_mode():
            workshop.program.run(few)
            start = time.perf_counter()
            workshop.program.run(few)
        forward = (time.perf_counter() - start) / len(few)
        batch = 128 if job.train is not None and len(job.train) >= SMALL_BATCH else 64
        bf16, step = False, 1.0
        if job.train is not None:
            step = seconds_per_step(job.model, job.train, batch, False)
            half = seconds_per_step(job.model, job.train, batch, True) if step > 0.02 else step
            bf16 = half * BF16_GAIN < step
            step = half if bf16 else step
        start = time.perf_counter()
        job.target.lower(workshop.program, job.example)
        candidate = 2.5 * (time.perf_counter() - start + 2 * TRIAL_SECONDS)  # building and scoring take as long as lowering and timing, and more
    samples = len(source)
    schedule = make_schedule(
        job.clock.seconds,
        job.clock.left,
        Probe(forward, step, candidate),
        options=options,
        samples=samples,
        train=len(job.train) if job.train is not None else 0,
        batch=batch,
    )
    if job.train is None and job.calibration is not None:
        schedule = schedule.model_copy(update={"recovery_steps": _calibration_steps(job, forward)})
    job.journal.append("schedule", {"schedule": schedule.model_dump(), "bf16": bf16, "batch": batch, "forward": forward}, job.clock.elapsed)
    return schedule, bf16, batch


def _calibration_steps(job: Job, forward: float) -> int:
    """Steps of label-free distillation on the calibration samples that a third of the time allows."""
    per_step = 6 * forward * CALIBRATION_BATCH  # a quantized forward and backward, and the teacher's forward
    steps = int(0.1 * job.clock.left / max(per_step, 1e-9))  # for each of three finalists
    return min(CALIBRATION_STEPS, steps - steps % 50)


def _option_database(job: Job, workshop: Workshop, sites: tuple[Site, ...], offered: dict[str, list[Method]], count: int) -> tuple[list[Place], list[Refusal]]:
    samples = (job.calibration if job.calibration is not None else job.example)[:count]
    places: list[Place] = []
    refused: list[Refusal] = []
    sensitivity: Sensitivity | None = None
    for number, site in enumerate(sites):
        name = key("options", job.fingerprint.model_dump(), site.model_dump(), [(m.name, m.model_dump()) for m in offered[site.id]], count, job.request.seed)
        stored = job.cache.get(name)
        if stored is None:
            sensitivity = sensitivity or Sensitivity(workshop, samples)
            place, more = sensitivity.place(site, offered[site.id], keep_option)
            job.cache.put(name, {"none": torch.zeros(1)}, {"options": [_option_to_json(o) for o in place.options], "refused": [r.model_dump() for r in more]})
        else:
            place = Place(site, tuple(_option_from_json(o) for o in stored[1]["options"]))
            more = [Refusal.model_validate(r) for r in stored[1]["refused"]]
        places.append(place)
        refused += more
        job.progress.stage("measuring options", 0.08 + 0.1 * number / len(sites), max(0.0, job.clock.left))
    return places, refused


def keep_option(site: Site) -> Option:
    """Leave the site as it is."""
    return Option("keep", channels=site.shape[0] if site.kind == "channels" else None)


def _option_to_json(option: Option) -> dict[str, Any]:
    from slimline.core.formats import Affine

    return {
        "label": option.label,
        "decisions": [d.model_dump(mode="json") for d in option.decisions],
        "loss": option.loss,
        "channels": option.channels,
        "dropped": option.dropped,
        "execute": option.execute,
        "factors": option.factors,
        "format": option.format.model_dump() if isinstance(option.format, Affine) else None,
    }


def _option_from_json(data: dict[str, Any]) -> Option:
    from slimline.core.formats import Affine, Float
    from slimline.core.plan import Decision

    format = Affine.model_validate(data["format"]) if data["format"] else Float()
    return Option(
        data["label"],
        tuple(Decision.model_validate(d) for d in data["decisions"]),
        data["loss"],
        data["channels"],
        data["dropped"],
        format,
        data["execute"],
        tuple(map(tuple, data["factors"])),
    )


def _timing(job: Job, workshop: Workshop, baseline: Artifact, places: list[Place]) -> Any:
    from slimline.search.space import Timing

    kept = job.journal.last("timing")
    if kept is not None:  # measured once: a resumed run must choose by the same costs
        return Timing(kept["full"], kept["half"], kept["rest"], kept["edge"])
    timing, _ = measure_timing(
        workshop, baseline, places, tuple(job.methods), job.base_plan, batch=job.request.budget.batch, threads=job.request.budget.threads
    )
    job.journal.append("timing", {"full": timing.full, "half": timing.half, "rest": timing.rest, "edge": timing.edge}, job.clock.elapsed)
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
        if quantity in ("size", "macs", "memory") and limit < least:
            unit = "multiply-adds" if quantity == "macs" else "bytes"
            raise BudgetNotMet(
                f"No plan reaches {quantity} {limit:,.0f} {unit}: with the smallest option everywhere the weights alone take {least:,.0f}."
                if quantity != "macs"
                else f"No plan reaches {limit:,.0f} multiply-adds: the narrowest takes {least:,.0f}.",
                hint=f"Allow at least {least:,.0f}, or more methods (slimline methods).",
            )


def measure(job: Job, workshop: Workshop, artifact: Artifact, latency: Latency, quality: float | None, program: Any, rss: int | None = None) -> Measurement:
    """Everything about an artefact but its latency and quality, which are handed in."""
    download, codec = download_bytes(artifact.payload)
    return Measurement(
        size_bytes=artifact.size_bytes,
        download_bytes=download,
        download_codec=codec,
        memory_bytes=job.target.memory(artifact, job.example),
        rss_bytes=rss,
        parameters=sum(t.numel() for t in program.parameters().values() if t.is_floating_point()),
        macs=program.macs(),
        latency_ms=latency,
        quality=quality,
    )


def search(job: Job, found: Found) -> None:
    """Candidates of the strategy, built without training and measured in the runtime, until the schedule is done."""
    resumed = [Trial.model_validate(t) for t in job.journal.events("trial")]
    found.trials += resumed
    given = job.request.plan
    strategy = Replay(plan=given) if given is not None else find("strategies", job.request.strategy)(found.schedule.candidates)
    loss_samples = (job.calibration if job.calibration is not None else job.example)[: found.schedule.samples_loss]
    reference = evaluate(job.model, loss_samples)
    count = 0
    while not job.clock.over(0.8) or sum(t.measurement is not None for t in found.trials) < LEAST_TRIALS:
        plan = strategy.propose(found.space, job.request.budget, found.trials)
        if plan is None:
            break
        count += 1
        with timed(job, "trying candidates", min(0.4, 0.2 + 0.2 * len(found.trials) / (1.4 * found.schedule.candidates))):
            trial = _try(job, found, plan, strategy.name, loss_samples, reference)
        found.trials.append(trial)
        job.journal.append("trial", trial.model_dump(mode="json"), job.clock.elapsed)
        if trial.status == "failed":
            job.progress.note(f"a candidate failed: {trial.error.splitlines()[0][:160]}")


def _try(job: Job, found: Found, plan: Plan, origin: str, samples: Samples, reference: Any) -> Trial:
    start = time.monotonic()
    choice = found.space.choice(plan)
    predicted = None if choice is None else found.space.loss(choice)
    costs = {} if choice is None else {k: float(v) for k, v in found.space.costs(choice).items()}
    try:
        built = found.workshop.build(plan)
        artifact = found.workshop.lower(built)
        verify_execution(job, built, artifact)
        latency = paired_latency(job, found, artifact, TRIAL_SECONDS)
        outputs = job.target.run(artifact, samples, threads=2)
        loss = float(torch.stack([divergence(a, b) for a, b in zip(outputs, flat(reference), strict=True) if a.is_floating_point()]).mean())
        quality, _, fidelity = scored(job, found, artifact)
        measured = measure(job, found.workshop, artifact, latency, quality, built.program)
        close = agreement(job.target.run(artifact, samples[:32], threads=2), flat(built.stored(samples[:32])) if built.stored is not None else ())
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
        agreement=close,
        fidelity=fidelity,
        violations=violations,
        seconds=round(time.monotonic() - start, 2),
    )


def scored(job: Job, found: Found, artifact: Artifact) -> tuple[float | None, torch.Tensor | None, Agreement | None]:
    """Quality, per-sample scores and fidelity on the evaluation samples, from the artefact's own outputs; ``None`` without data."""
    if job.evaluation is None:
        return None, None, None
    raw = job.target.run(artifact, job.evaluation, threads=2)
    quality, scores = job.score(as_outputs(raw, found.original), job.evaluation, found.original)
    return quality, scores, agreement(raw, flat(found.original))


def paired_latency(job: Job, found: Found, artifact: Artifact, seconds: float) -> Latency:
    """Measured interleaved with the baseline, and scaled by what the baseline takes now against what it took at the start.

    A machine that others use is slower at one time than at another; the ratio is not.
    """
    budget = job.request.budget
    now, latency = job.target.latency([found.baseline, artifact], job.example, batch=budget.batch, threads=budget.threads, seconds=seconds)
    scale = found.baseline_measurement.latency_ms.median / now.median
    return latency.model_copy(update={"median": latency.median * scale, "p95": latency.p95 * scale})


def verify_execution(job: Job, built: Built, artifact: Artifact) -> None:
    """A layer that the plan calls integer and the runtime runs in float fails the plan.

    Raises:
        SlimlineError: naming the layers.
    """
    wanted = {p for p, e in (built.stored.encoded if built.stored is not None else {}).items() if e.execute in ("integer", "dynamic")}
    if not wanted:
        return
    operations = job.target.operations(artifact, job.example, threads=1)
    weighted = [o for o in operations if o.weight in wanted]
    floating = sorted({o.weight for o in weighted if o.executes != "integer"})
    if floating:
        raise SlimlineError(f"{job.target.name} runs {', '.join(floating[:3])} in float although the plan says integer.")
    missing = sorted(wanted - {o.weight for o in weighted})
    if missing:
        job.note(f"whether {', '.join(missing[:3])} run in integers could not be read back from {job.target.name}")


def recover(job: Job, found: Found, halfwidth: float) -> list[Trial]:
    """The race: promising candidates are trained; returns those that ended it (or the untrained ones without training data)."""
    budget = job.request.budget
    assert found.baseline_measurement.quality is None or job.evaluation is not None
    tried = [t for t in found.trials if t.measurement is not None and not [v for v in t.violations if v.quantity != "drop"]]
    front = _front(tried, budget.minimize)
    if not found.schedule.recovery_steps or job.train is None or found.baseline_measurement.quality is None:
        return front
    allowed = budget.max_drop.allowed(found.baseline_measurement.quality) - halfwidth
    entries = [
        Entry(t.plan, _objective(t, budget.minimize))
        for t in _promising(front, _lanes(found.schedule.recovery_steps), found.baseline_measurement.quality, allowed)
    ]
    plan = rungs(int(found.schedule.recovery_steps * (1 - QAT_SHARE)), len(entries))
    total = sum(r.entries * r.steps for r in plan)
    done = 0

    def train(entry: Entry, rung: Rung) -> float | None:
        nonlocal done
        with timed(job, "recovering", 0.4 + 0.4 * done / max(total, 1)):
            drop = _train(job, found, entry, rung)
        done += rung.steps
        return drop

    last = race(entries, plan, train, allowed)
    by_plan = {t.plan.digest: t for t in front}
    runners_up = sorted([e for e in entries if e.drops and e not in last and e.drops[-1][1] <= allowed], key=lambda e: e.objective)
    return [by_plan[e.plan.digest] for e in [*last, *runners_up]]


def _lanes(steps: int) -> int:
    """How many candidates enter the race: each needs enough steps to show what it can do."""
    return 6 if steps >= 1500 else 4 if steps >= 300 else 2


def _objective(trial: Trial, quantity: Quantity) -> float:
    assert trial.measurement is not None
    return trial.measurement.cost(quantity)


def _front(trials: list[Trial], quantity: Quantity) -> list[Trial]:
    """Trials that none beats in objective and measured loss, the safest first."""
    ranked = sorted(trials, key=lambda t: (t.measured_loss if t.measured_loss is not None else 0.0, _objective(t, quantity)))
    front: list[Trial] = []
    for trial in ranked:
        if not front or _objective(trial, quantity) < 0.995 * _objective(front[-1], quantity):
            front.append(trial)
    return front


def _promising(front: list[Trial], count: int, base: float, allowed: float) -> list[Trial]:
    """The part of a front (the safest first) where training decides: around the last member expected to come back within ``allowed``."""
    hopeful = [t for t in front if (t.measured_loss or 0.0) <= HOPEFUL] or front[:1]

    def expected(trial: Trial) -> float:
        quality = trial.measurement.quality if trial.measurement is not None else None
        return RECOVERS * (base - quality) if quality is not None else 0.0

    edge = max((i for i, t in enumerate(hopeful) if expected(t) <= allowed), default=0)
    first = max(0, min(edge - count // 2 + 1, len(hopeful) - count))
    return hopeful[first : first + count]


def _train(job: Job, found: Found, entry: Entry, rung: Rung) -> float | None:
    """One rung of one entry, taken up where it was, or from the cache of an earlier run; its drop then.

    The structure is trained in float (with its batch norms) first; where the numerics are rough, the
    later rungs train the exported graph with the quantizers in the loop.
    """
    digest = entry.plan.digest
    rough = _numerics_loss(found, entry.plan) > ROUGH
    with_quantizers = rough and (entry.steps > 0 or not entry.plan.stage("structure"))
    assert job.evaluation is not None and job.train is not None and found.baseline_measurement.quality is not None
    if digest not in found.modules:
        found.modules[digest] = found.workshop.structure(entry.plan)
    module = found.modules[digest]
    if with_quantizers:
        if digest not in found.quantized:
            found.quantized[digest] = found.workshop.build(entry.plan, module if entry.plan.stage("structure") else None)
        module = found.quantized[digest].training.module
    elif job.example.tensors[0].ndim == 4:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    how = Distillation(
        steps=rung.steps,
        batch=found.batch,
        seed=job.request.seed + entry.steps,
        bf16=found.bf16,
        augmentation=found.augmentation,
    )
    if with_quantizers:
        how = dataclasses.replace(how, learning_rate=how.learning_rate * QAT_RATE, weight_decay=0.0)
    if not _trained(
        job, found, module, how, job.train, key("recovered", digest, entry.steps + rung.steps, found.schedule.recovery_steps, with_quantizers), 0.92
    ):
        return None
    quality = _quality_now(job, found, entry, module, with_quantizers)
    drop = found.baseline_measurement.quality - quality
    job.journal.append("rung", {"plan": digest, "steps": entry.steps + rung.steps, "drop": drop, "with_quantizers": with_quantizers}, job.clock.elapsed)
    trial = next(t for t in found.trials if t.plan.digest == digest)
    if trial.measurement is not None and drop <= job.request.budget.max_drop.allowed(found.baseline_measurement.quality):
        _show(job, found, trial.measurement, drop, entry.plan)
    return drop


def _rate(found: Found, digest: str) -> float:
    """Learning rate in proportion to the root of what was lost."""
    trial = next(t for t in found.trials if t.plan.digest == digest)
    lost = (trial.measured_loss or 0.0) / FULL_RATE
    return Distillation(steps=0).learning_rate * min(1.0, max(math.sqrt(lost), 0.1))


def _trained(job: Job, found: Found, module: nn.Module, how: Distillation, samples: Samples, name: str, latest: float) -> bool:
    """Train a module in place, or load what an earlier run made of it; ``False`` where there is no time."""
    stored = job.cache.get(name)
    if stored is not None:
        module.load_state_dict(stored[0])
        return True
    if job.clock.over(latest):
        return False
    is_graph = isinstance(module, torch.fx.GraphModule)
    if not is_graph:
        module.train()
    done = distil(
        module, module.parameters(), job.model, samples, how, loss=job.loss if job.train is not None else None, stop=lambda: job.clock.over(latest + 0.02)
    )
    if not is_graph:
        module.eval()
    if done == how.steps:
        job.cache.put(name, module.state_dict())
    return True


def _numerics_loss(found: Found, plan: Plan) -> float:
    """What the plan's numerics lose on paper."""
    choice = found.space.choice(plan)
    return 0.0 if choice is None else sum(p.options[c].loss for p, c in zip(found.space.places, choice, strict=True) if p.site.kind == "weight")


def _quality_now(job: Job, found: Found, entry: Entry, module: nn.Module, with_quantizers: bool) -> float:
    """Quality on the evaluation samples: of the artefact once the quantizers are trained with, of the float structure before."""
    assert job.evaluation is not None
    if with_quantizers:
        quality = scored(job, found, found.workshop.lower(found.quantized[entry.plan.digest]))[0]
        assert quality is not None
        return quality
    return job.model_quality(module, job.evaluation, found.original, bf16=found.bf16)[0]


def _show(job: Job, found: Found, m: Measurement, drop: float | None, plan: Plan) -> None:
    base = found.baseline_measurement
    job.progress.best(
        Best(
            plan.digest,
            m.size_bytes,
            base.size_bytes / m.size_bytes,
            m.latency_ms.median,
            base.latency_ms.median / m.latency_ms.median,
            drop,
            in_points(base.quality),
        )
    )


@dataclass
class Finalist:
    """A plan as it could be delivered: recovered, quantized, lowered and measured on the evaluation samples."""

    trial: Trial
    built: Built
    artifact: Artifact
    scores: torch.Tensor | None


def finish(job: Job, found: Found, trial: Trial, threshold: float | None) -> Finalist:
    """Quantize the recovered structure, train with the quantizers in the loop where that is called for, lower, measure.

    ``threshold``: the drop up to which nothing more is done.

    Raises:
        SlimlineError: the plan cannot be carried out after all.
    """
    start = time.monotonic()
    plan = trial.plan
    built = found.quantized.get(plan.digest) or found.workshop.build(plan, found.modules.get(plan.digest))
    artifact = found.workshop.lower(built)
    quality, scores, fidelity = scored(job, found, artifact)
    base = found.baseline_measurement.quality
    untrained = trial.measurement.quality if trial.measurement is not None else None
    if quality is not None and untrained is not None and untrained > quality:  # training a mild plan can lose what compression did not
        found.modules.pop(plan.digest, None)
        found.quantized.pop(plan.digest, None)
        built = found.workshop.build(plan)
        artifact = found.workshop.lower(built)
        quality, scores, fidelity = scored(job, found, artifact)
    if quality is not None and base is not None and threshold is not None and base - quality > threshold and plan.stage("numerics"):
        tuned = _with_quantizers(job, found, built, plan)
        if tuned is not None:
            other = found.workshop.lower(tuned)
            better, better_scores, closer = scored(job, found, other)
            if better is not None and better > quality:
                built, artifact, quality, scores, fidelity = tuned, other, better, better_scores, closer
    verify_execution(job, built, artifact)
    latency = paired_latency(job, found, artifact, 2 * TRIAL_SECONDS)
    measured = measure(job, found.workshop, artifact, latency, quality, built.program)
    assert built.stored is not None
    few = (job.calibration if job.calibration is not None else job.example)[:64]
    close = agreement(job.target.run(artifact, few, threads=2), flat(built.stored(few)))
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


def _with_quantizers(job: Job, found: Found, built: Built, plan: Plan) -> Built | None:
    """A copy trained with quantizers in the loop; ``None`` where there is no time or nothing to train on."""
    samples = job.train if job.train is not None else job.calibration
    steps = int(found.schedule.recovery_steps * (QAT_SHARE / 2 if job.train is not None else 1.0))
    if samples is None or steps < 10:
        return None
    training = built.training.copy()
    how = Distillation(
        steps=steps,
        batch=found.batch if job.train is not None else CALIBRATION_BATCH,
        seed=job.request.seed + 7,
        bf16=found.bf16,
        augmentation=found.augmentation,
        learning_rate=Distillation(steps=0).learning_rate * QAT_RATE * (1.0 if job.train is not None else 0.1),
        weight_decay=0.0,
    )
    with timed(job, "training with quantizers in the loop", 0.85):
        if not _trained(job, found, training.module, how, samples, key("quantized", plan.digest, steps, found.schedule.recovery_steps), 0.95):
            return None
    return Built(plan, built.module, built.program, training)
