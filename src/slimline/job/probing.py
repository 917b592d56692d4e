"""What things take on this machine, probed at the start: the runtime, encoding, a candidate; and the schedule that follows."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from slimline.archive.container import download
from slimline.core.contracts import Artifact
from slimline.core.plan import Decision, Method
from slimline.core.result import Schedule
from slimline.core.site import Site
from slimline.errors import SlimlineError
from slimline.job.context import Job
from slimline.job.finishing import CALIBRATION_BATCH
from slimline.job.found import TRIAL_SECONDS, timed
from slimline.model.recover import Distillation, bf16_pays, seconds_per_step
from slimline.model.statistics import ProgramStatistics
from slimline.search.schedule import ENOUGH_STEPS, LEAST_BATCH, Probe, batch_size, coarse, make_schedule
from slimline.search.workshop import Workshop

BF16_GAIN = 1.3  # how much faster a step must be before half of the mantissa is given up
PROBE_SHARE = 0.05  # of the time; a candidate that takes longer is not made twice only to be timed
EVALUATION_SHARE, FEWEST_EVALUATED = 0.03, 500  # of the time, that a candidate's evaluation samples may take in the runtime; and how many there are at least
CERTIFYING_SHARE = 0.3  # of the time: a certificate that takes more is announced
TIMED_SAMPLES = 4, 36
CALIBRATION_STEPS = 400  # of label-free distillation on calibration samples, where there is no training data


@dataclass(frozen=True)
class Speed:
    """Measured at the start. Seconds: of one forward sample; of what each kind (``kind_of``) of numeric option does to a weight, for each unit of ``_work``; and of gathering the inputs that calibration saw, for one layer (``_layer_of``)."""

    forward: float
    encoding: Mapping[str, float]
    gathering: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, site: Site, methods: Iterable[Method]) -> float:
        """Of encoding a weight in all these ways."""
        kinds = {kind_of(site, m): m for m in methods}
        return sum(self.of_kind(site, m) for m in kinds.values()) + (self.gathering.get(_layer_of(site), 0.0) if kinds else 0.0)

    def of_kind(self, site: Site, method: Method) -> float:
        """Of one of these ways, the layer's inputs being at hand."""
        return _work(site, method) * self.encoding.get(kind_of(site, method), 0.0)


def speed_of(job: Job, workshop: Workshop, offered: dict[str, list[Method]]) -> Speed:
    """From the journal if it is there (a resumed run measures the same options), else probed."""
    kept = job.journal.last("speed")
    if kept is not None:
        return Speed(float(kept["forward"]), *({k: float(seconds) for k, seconds in kept.get(part, {}).items()} for part in ("encoding", "gathering")))
    with timed(job, "probing throughput", 0.03):
        source = job.calibration if job.calibration is not None else job.example
        few = source[: min(len(source), 64)]
        with torch.inference_mode():
            workshop.program.run(few)
            start = time.perf_counter()
            workshop.program.run(few)
        speed = Speed((time.perf_counter() - start) / len(few), *_encoding_seconds(workshop, offered))
    job.journal.append("speed", {"forward": speed.forward, "encoding": dict(speed.encoding), "gathering": dict(speed.gathering)}, job.clock.elapsed)
    return speed


def _encoding_seconds(workshop: Workshop, offered: dict[str, list[Method]]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each kind for a unit of work, at the site that is nearest to the mean of those of its operation; and of gathering its inputs first, which a layer needs once for all of them.

    What is made there is kept: the option database asks for it anyway.
    """
    sites = [s for s in workshop.sites if s.kind == "weight" and offered.get(s.id)]
    statistics = workshop.statistics
    found: dict[str, float] = {}
    gathering: dict[str, float] = {}
    for op in dict.fromkeys(s.op for s in sites):
        same = [s for s in sites if s.op == op]
        mean = sum(_squared(s) for s in same) / len(same)
        site = min(same, key=lambda s: abs(_squared(s) - mean))
        if statistics is not None:
            gathering |= _gathering_seconds(statistics, site, same)
        for method in (m for m in offered[site.id] if m.stage == "numerics" and kind_of(site, m) not in found):
            start = time.perf_counter()
            with contextlib.suppress(SlimlineError):  # a refusal takes its time, too
                workshop.numeric_edits(workshop.program, site.id, method, statistics)
            found[kind_of(site, method)] = (time.perf_counter() - start) / _work(site, method)
    return found, gathering


def _gathering_seconds(statistics: ProgramStatistics, site: Site, same: Sequence[Site]) -> dict[str, float]:
    """Of the inputs of one layer of each kind among ``same``: of ``site``, and elsewhere of the one with a middle number of outputs."""
    found: dict[str, float] = {}
    for layer in dict.fromkeys(map(_layer_of, same)):
        alike = sorted((s for s in same if _layer_of(s) == layer), key=lambda s: s.shape[0])
        start = time.perf_counter()
        statistics.moment(site.id if site in alike else alike[len(alike) // 2].id)
        found[layer] = time.perf_counter() - start
    return found


def kind_of(site: Site, method: Method) -> str:
    """Numeric options that take as long as each other at weights of the same size. Second-order rounding to some bits is made once for all methods that ask for it."""
    bits, rounding = getattr(method, "bits", None), getattr(method, "rounding", "")
    return f"{site.op}: {bits} bits by second order" if bits and is_second_order(method) else f"{site.op}: {method.name}, {bits}, {rounding}, {method.gains}"


def is_second_order(method: Method) -> bool:
    return getattr(method, "rounding", None) == "second_order" and not method.gains


def _work(site: Site, method: Method) -> int:
    """What the seconds are in proportion to: each output's inputs, squared where second-order information is asked for."""
    squared = "second_order" in (getattr(method, "rounding", None), getattr(method, "importance", None)) or getattr(method, "rounding", None) == "learned"
    return _squared(site) if squared else math.prod(site.shape)


def _layer_of(site: Site) -> str:
    """Its operation; depthwise layers, which have a small matrix of inputs for every channel, are another one."""
    return f"depthwise {site.op}" if site.op.startswith("conv") and site.shape[1] == 1 else site.op


def _squared(site: Site) -> int:
    return site.shape[0] * math.prod(site.shape[1:]) ** 2


def limit_evaluation(job: Job, baseline: Artifact) -> None:
    """Where the runtime is slow, candidates are chosen by fewer of the samples, drawn by the seed: an interpreter for microcontrollers took five minutes for each candidate of a run of three.

    The certificate is about all of the holdout, and takes its time: that is said.
    """
    if job.evaluation is None or len(job.evaluation) <= FEWEST_EVALUATED:
        return
    kept = job.journal.last("evaluation")
    if kept is None:
        each = _seconds_per_sample(job, baseline)
        affordable = max(FEWEST_EVALUATED, coarse(EVALUATION_SHARE * job.clock.seconds / max(each, 1e-9)))
        kept = {"samples": min(len(job.evaluation), affordable), "seconds": each}
        job.journal.append("evaluation", kept, job.clock.elapsed)
    count, each = int(kept["samples"]), float(kept["seconds"])
    if count < len(job.evaluation):
        job.note(
            f"candidates were chosen by {count:,} of {len(job.evaluation):,} samples: {job.target.name} takes {1e3 * each:.1f} ms for each; give more --time for more of them"
        )
        order = torch.randperm(len(job.evaluation), generator=torch.Generator().manual_seed(job.request.seed))
        job.evaluation = job.evaluation[order[:count].sort().values]
    holdout = job.source.data("holdout")
    tested = 0.0 if holdout is None else 2 * len(holdout) * each
    if tested > CERTIFYING_SHARE * job.clock.seconds:
        job.progress.note(
            f"certifying on {len(holdout or ()):,} holdout samples will take about {tested:.0f} s at the end: {job.target.name} takes {1e3 * each:.1f} ms for each"
        )


def _seconds_per_sample(job: Job, artifact: Artifact) -> float:
    """Of the runtime, without what opening a file takes."""
    assert job.evaluation is not None
    times = []
    for count in TIMED_SAMPLES:
        start = time.perf_counter()
        job.target.run(artifact, job.evaluation[:count], threads=2)
        times.append(time.perf_counter() - start)
    return max(times[1] - times[0], 0.0) / (TIMED_SAMPLES[1] - TIMED_SAMPLES[0])


def scheduled(job: Job, workshop: Workshop, offered: dict[str, list[Method]], speed: Speed, least: int) -> tuple[Schedule, bool, int, float]:
    """With whether to train in bf16, the batch, and the seconds of one candidate: from the journal if it is there (a resumed run keeps it), else from a probe."""
    kept = job.journal.last("schedule")
    if kept is not None:
        return Schedule.model_validate(kept["schedule"]), bool(kept["bf16"]), int(kept["batch"]), float(kept.get("candidate", 0.0))
    with timed(job, "probing throughput", 0.04):
        batch = batch_size(len(job.train) if job.train is not None else 0, speed.forward, job.clock.left)
        bf16, step, device = False, 1.0, job.request.train_device
        if job.train is not None:
            how = Distillation(steps=0, batch=batch, learning_rate=1e-6, device=device)
            step = seconds_per_step(copy.deepcopy(job.model).train(), job.model, job.train, how)
            halved = step > 0.02 and bf16_pays()
            half = seconds_per_step(copy.deepcopy(job.model).train(), job.model, job.train, replace(how, bf16=True)) if halved else step
            bf16 = half * BF16_GAIN < step
            step = half if bf16 else step
        candidate = _candidate_seconds(job, workshop, offered, speed)

    def schedule_of(batch: int, step: float) -> Schedule:
        return make_schedule(
            job.clock.seconds,
            job.clock.left,
            Probe(speed.forward, step, candidate),
            options=sum(map(len, offered.values())),
            samples=len(job.calibration if job.calibration is not None else job.example),
            train=len(job.train) if job.train is not None else 0,
            batch=batch,
            least=least,
        )

    schedule = schedule_of(batch, step)
    while job.train is not None and schedule.recovery_steps < ENOUGH_STEPS and batch > LEAST_BATCH:  # a step takes longer than forward passes let expect
        batch, step = batch // 2, step / 2
        schedule = schedule_of(batch, step)
    if job.train is None and job.calibration is not None:
        schedule = schedule.model_copy(update={"recovery_steps": _calibration_steps(job, speed.forward)})
    job.journal.append("schedule", {"schedule": schedule.model_dump(), "bf16": bf16, "batch": batch, "candidate": candidate, "step": step}, job.clock.elapsed)
    return schedule, bf16, batch, candidate


def _candidate_seconds(job: Job, workshop: Workshop, offered: dict[str, list[Method]], speed: Speed) -> float:
    """What one candidate takes: the mildest structure of one place with plain numerics of every weight, built, lowered, run on the evaluation samples and packed.

    The first is built twice as slow as those after it (what is observed once, modules that are loaded), so a second one is timed, unless that takes too long. Second-order rounding,
    which a new structure asks for again, is added as it was probed.
    """
    kinds = {s.id: s.kind for s in workshop.sites}
    none: tuple[Decision, ...] = ()
    structures = [(Decision(site=s, method=m),) for s, options in offered.items() if kinds[s] in ("channels", "block") for m in options[:1]][:2]
    weights = {s: [m for m in offered.get(s.id, ()) if not workshop.refused(s.op, m)] for s in workshop.sites if s.kind == "weight"}
    numerics = tuple(Decision(site=s.id, method=m) for s, options in weights.items() for m in plain(options))
    again = sum(max((speed.seconds(s, [m]) for m in options if is_second_order(m)), default=0.0) for s, options in weights.items() if structures)
    seconds = 0.0
    for structure in [*structures, none, none][:2]:
        start = time.perf_counter()
        for decisions in ((*structure, *numerics), structure, numerics, none):  # not everything that is offered can be carried out, alone or together
            try:
                artifact = workshop.lower(workshop.build(workshop.plan(decisions)))
            except SlimlineError:
                continue
            break
        job.target.latency([artifact], job.usual, batch=job.request.budget.batch, threads=job.request.budget.threads, seconds=2 * TRIAL_SECONDS)
        job.target.run(artifact, job.evaluation if job.evaluation is not None else job.example, threads=2)
        download(artifact.content, exact=False)
        seconds = time.perf_counter() - start
        if seconds > PROBE_SHARE * job.clock.seconds:
            break
    return seconds + again


def plain(options: list[Method]) -> list[Method]:
    """The first option in 8 bits, rounded to the nearest; else the first. Masks and codebooks of wide layers can take longer than all else: a MiniLM's candidate took 241 s with them."""
    numeric = [m for m in options if m.stage == "numerics"]
    eight = [to_nearest(m) for m in numeric if getattr(m, "bits", None) == 8 and not m.gains]
    return (eight or numeric)[:1]


def to_nearest(method: Method) -> Method:
    """The same, rounded to the nearest."""
    return type(method).model_validate({**method.model_dump(), "rounding": "nearest"})


def _calibration_steps(job: Job, forward: float) -> int:
    """Steps of label-free distillation on the calibration samples that a third of the time allows."""
    per_step = 6 * forward * CALIBRATION_BATCH  # a quantized forward and backward, and the teacher's forward
    steps = int(0.1 * max(job.clock.left, 0.0) / max(per_step, 1e-9))  # for each of three finalists
    return min(CALIBRATION_STEPS, steps - steps % 50)
