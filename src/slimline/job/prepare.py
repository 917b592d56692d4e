"""Before the first candidate: sites, the schedule, the option database, and what layers take."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from slimline.archive.container import download
from slimline.core.budget import QUANTITIES
from slimline.core.contracts import Artifact, saturates
from slimline.core.plan import Decision, Method, Recovery
from slimline.core.result import Schedule
from slimline.core.site import Refusal, Site
from slimline.core.trial import Measurement
from slimline.errors import BudgetNotMet, SlimlineError
from slimline.job.context import Job
from slimline.job.found import TRIAL_SECONDS, Found, look, measure, timed
from slimline.job.recovery import CALIBRATION_BATCH, COARSENESS
from slimline.job.workers import Bench, share
from slimline.model.augment import Augmentation, find_augmentation
from slimline.model.recover import Distillation, bf16_pays, evaluate, seconds_per_step
from slimline.report.sentence import MINIMISED, bytes_text, count_text, latency_text, number_of
from slimline.search.schedule import FEWEST_SAMPLES, LEAST_CANDIDATES, LEAST_SAMPLES, MOST_CANDIDATES, Probe, batch_size, make_schedule
from slimline.search.sensitivity import FACTOR_SAMPLES, Sensitivity
from slimline.search.space import Option, Place, Space, layers_of
from slimline.search.strategies.replay import planned
from slimline.search.timing import measure_timing
from slimline.search.workshop import Workshop
from slimline.store.cache import key

TIMING_SHARE = 0.12  # of the time, that lowering whole models to time their layers may take
BF16_GAIN = 1.3  # how much faster a step must be before half of the mantissa is given up

PROBE_SHARE = 0.05  # of the time; a candidate that takes longer is not made twice only to be timed
MEASURED = 0.6  # of a forward pass, that an option computes: what lies downstream of it
OPTIONS_SHARE = 0.2  # of the time, that measuring options may take
SLOW_KIND = 0.5  # of that, which encoding all weights in one way may take where there is no time for everything
FACTORED_SHARE = 0.05  # of the time, that options of factored layers may take to measure
REPAIR_SAMPLES, REPAIR_PASSES = 256, 4  # an option that builds the model anew is repaired and its norms measured: forwards of calibration samples
CALIBRATION_STEPS = 400  # of label-free distillation on calibration samples, where there is no training data


def prepare(job: Job) -> Found:
    """Sites, schedule, option database, timing: everything before the first candidate.

    Raises:
        BudgetNotMet: a budget below what any plan can reach.
    """
    budget = job.request.budget
    with timed(job, "looking at the model", 0.01):
        sites, refused, workshop = look(job)
        baseline = job.target.lower(workshop.original, job.example)
        (latency,) = job.target.latency([baseline], job.example, batch=budget.batch, threads=budget.threads, seconds=1.0)
        samples = job.evaluation if job.evaluation is not None else job.example
        original = evaluate(job.model, samples)
        quality, scores = job.score(original, samples, original) if job.evaluation is not None else (None, None)
        measured = measure(job, workshop, baseline, latency, quality, workshop.program)
    if quality is not None:
        budget.max_drop.allowed(quality)
    offered = {s.id: offers(job, s) for s in sites}
    speed = _speed(job, workshop, offered)
    least = LEAST_SAMPLES
    if job.request.plan is None:
        offered, least = _fewer(job, sites, offered, speed)
    schedule, bf16, batch, candidate = _schedule(job, workshop, offered, speed, least)
    if job.request.plan is None:
        offered = _affordable(job, sites, offered, speed, schedule.samples_loss)
    workshop.moments = any(m.stage == "structure" for name, options in offered.items() if "#" not in name for m in options)
    _announce(job, workshop, sites, refused, measured, schedule)
    with timed(job, "measuring options", 0.08):
        places, more = _option_database(job, workshop, sites, offered, schedule.samples_loss)
    with timed(job, "timing layers", 0.18):
        timing = _timing(job, workshop, baseline, places, candidate)
    if getattr(job.target, "integer_only", False):
        places = [_in_integers(p) for p in places]
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
    )
    _check_reachable(job, space)
    if job.request.plan is None:
        asked = {*budget.weights(space.costs(space.nothing)), *budget.limits()}
        space = space.pruned(lambda o: budget.minimize == "download" and o.coarseness == COARSENESS, [q for q in QUANTITIES if q in asked])
    augmentation = Augmentation()
    if schedule.recovery_steps and job.evaluation is not None:
        with timed(job, "looking for safe augmentations", 0.2):
            augmentation = (
                find_augmentation(
                    lambda s: job.model_quality(job.model, s, original, bf16=bf16)[0],
                    job.evaluation[:2_000],
                    few=2_000,
                    seed=job.request.seed,
                    warp=budget.minimize == "download",
                )
                if job.evaluation.targets is not None
                else Augmentation()
            )
            if job.train is None:
                augmentation = replace(augmentation, mix=True)
    return Found(workshop, space, [*refused, *more], schedule, baseline, measured, original, scores, bf16, batch, augmentation)


def offers(job: Job, site: Site) -> list[Method]:
    """Every option of the allowed methods at a site, ``keep`` left out (it is always there); of a plan that is carried out, its own."""
    if job.request.plan is not None:
        return planned(job.request.plan, site)
    fitting = {n: m for n, m in job.methods.items() if n != "keep" and site.kind in m.kinds}
    for name in [n for n, m in fitting.items() if "train" in m.needs and job.train is None]:
        job.note(f"{name}: it needs training data, and there is none")
        del fitting[name]
    wanted = {job.request.budget.minimize, *job.request.budget.limits()}
    found = [o for m in fitting.values() for o in m.candidates(site) if not o.gains or wanted.intersection(o.gains)]
    return [o.reduced() for o in found] if saturates(job.target) else found


@dataclass(frozen=True)
class Speed:
    """Measured at the start. Seconds: of one forward sample, and of what each ``_kind`` of numeric option does to a weight, for each unit of ``_work``."""

    forward: float
    encoding: Mapping[str, float]

    def seconds(self, site: Site, methods: Iterable[Method]) -> float:
        """Of encoding a weight in all these ways."""
        return _work(site) * sum(self.encoding.get(kind, 0.0) for kind in {_kind(site, m) for m in methods})


def _speed(job: Job, workshop: Workshop, offered: dict[str, list[Method]]) -> Speed:
    """From the journal if it is there (a resumed run measures the same options), else probed."""
    kept = job.journal.last("speed")
    if kept is not None:
        return Speed(float(kept["forward"]), {kind: float(seconds) for kind, seconds in kept["encoding"].items()})
    with timed(job, "probing throughput", 0.03):
        source = job.calibration if job.calibration is not None else job.example
        few = source[: min(len(source), 64)]
        with torch.inference_mode():
            workshop.program.run(few)
            start = time.perf_counter()
            workshop.program.run(few)
        speed = Speed((time.perf_counter() - start) / len(few), _encoding_seconds(workshop, offered))
    job.journal.append("speed", {"forward": speed.forward, "encoding": dict(speed.encoding)}, job.clock.elapsed)
    return speed


def _encoding_seconds(workshop: Workshop, offered: dict[str, list[Method]]) -> dict[str, float]:
    """Of each kind, at the site in the middle of those of its operation. What is made there is kept: the option database asks for it anyway."""
    sites = sorted((s for s in workshop.sites if s.kind == "weight" and offered.get(s.id)), key=_work)
    found: dict[str, float] = {}
    for op in dict.fromkeys(s.op for s in sites):
        same = [s for s in sites if s.op == op]
        site = same[len(same) // 2]
        for method in (m for m in offered[site.id] if m.stage == "numerics" and _kind(site, m) not in found):
            start = time.perf_counter()
            with contextlib.suppress(SlimlineError):  # a refusal takes its time, too
                workshop.numeric_edits(workshop.program, site.id, method, workshop.statistics)
            found[_kind(site, method)] = (time.perf_counter() - start) / _work(site)
    return found


def _kind(site: Site, method: Method) -> str:
    """Numeric options that take as long as each other at weights of the same size. Second-order rounding to some bits is made once for all methods that ask for it."""
    bits, rounding = getattr(method, "bits", None), getattr(method, "rounding", "")
    return f"{site.op}: {bits} bits by second order" if bits and _is_second_order(method) else f"{site.op}: {method.name}, {bits}, {rounding}, {method.gains}"


def _is_second_order(method: Method) -> bool:
    return getattr(method, "rounding", None) == "second_order" and not method.gains


def _work(site: Site) -> int:
    """Of second-order rounding: each output's inputs, squared."""
    return site.shape[0] * math.prod(site.shape[1:]) ** 2


def _fewer(job: Job, sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed) -> tuple[dict[str, list[Method]], int]:
    """The offers that there is time to measure, and on how many samples at least; what is left out is said in the report.

    First go every second width and all but one setting of each number of bits; then once more every second width, 2 bits, and second-order rounding of 8 bits, which gains least by it; at last
    what takes long to encode.
    """
    kinds, allowed = {s.id: s.kind for s in sites}, OPTIONS_SHARE * job.clock.seconds
    apart = {s.id for s in sites if s.kind in ("input", "model")}  # these have a share of their own

    def seconds(part: dict[str, list[Method]], samples: int) -> float:
        count = sum(sum(m.stage == "numerics" or kinds[s] != "weight" for m in options) for s, options in part.items() if s not in apart)
        return count * speed.forward * MEASURED * samples + sum(speed.seconds(s, part[s.id]) for s in sites if s.kind == "weight")

    def thinned(part: dict[str, list[Method]], few: Callable[[list[Method]], list[Method]]) -> dict[str, list[Method]]:
        widths = {s: options[1::2] for s, options in part.items() if kinds[s] == "channels" and len(options) > 2}
        return {s: widths.get(s) or (options if s in apart else few(options)) for s, options in part.items()}

    needed = seconds(offered, LEAST_SAMPLES)
    if needed <= allowed:
        return offered, LEAST_SAMPLES
    half = thinned(offered, _first_of_each)
    few = half if seconds(half, LEAST_SAMPLES) <= allowed else thinned(half, _fewest)
    if seconds(few, LEAST_SAMPLES) > allowed:
        few = _quick(sites, few, speed, SLOW_KIND * allowed)
    said = "half of all options" if few is half else f"{1 - sum(map(len, few.values())) / sum(map(len, offered.values())):.0%} of all options"
    job.note(f"{said}: measuring them would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have them tried")
    return few, LEAST_SAMPLES if seconds(few, LEAST_SAMPLES) <= allowed else FEWEST_SAMPLES


def _quick(sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed, most: float) -> dict[str, list[Method]]:
    """Without the kinds of numeric options that take more than ``most`` seconds to encode all weights: masks and codebooks of wide layers."""
    weights = [s for s in sites if s.kind == "weight"]
    taken: dict[str, float] = {}
    for site in weights:
        for kind in {_kind(site, m) for m in offered[site.id]}:
            taken[kind] = taken.get(kind, 0.0) + _work(site) * speed.encoding.get(kind, 0.0)
    return offered | {s.id: [m for m in offered[s.id] if taken[_kind(s, m)] <= most] for s in weights}


def _affordable(job: Job, sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed, samples: int) -> dict[str, list[Method]]:
    """Without those that build the model anew and without factored layers, where measuring them takes more than their share; said in the report."""
    calibration = min(len(job.calibration), REPAIR_SAMPLES) if job.calibration is not None else 0
    repaired = {s.id: offered[s.id] for s in sites if s.kind in ("input", "model") and not s.tokens}
    shortened = {s.id: offered[s.id] for s in sites if s.tokens}
    factored = {s.id: [m for m in offered[s.id] if m.stage == "structure"] for s in sites if s.kind == "weight"}
    for part, per_option in ((repaired, REPAIR_PASSES * calibration + samples), (shortened, samples), (factored, min(samples, FACTOR_SAMPLES))):
        if (needed := sum(map(len, part.values())) * speed.forward * per_option) > FACTORED_SHARE * job.clock.seconds:
            names = ", ".join(sorted({m.name for options in part.values() for m in options}))
            job.note(f"{names}: measuring these options would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have them tried")
            offered = {s: [m for m in options if m not in part.get(s, ())] for s, options in offered.items()}
    return offered


def _first_of_each(options: list[Method]) -> list[Method]:
    """One option of each method, number of bits and rate: the first, or the one that rounds by second-order information, which lost half as much on EfficientNet-Lite0."""
    best: dict[tuple[object, ...], Method] = {}
    for method in options:
        place = (method.name, getattr(method, "bits", None), getattr(method, "rate", None))
        if place not in best or getattr(method, "rounding", None) == "second_order":
            best[place] = method
    return list(best.values())


def _fewest(options: list[Method]) -> list[Method]:
    """Of those that are left: 8 bits rounded to the nearest, 4 as they are, no 2; of others the first of each method."""
    best: dict[tuple[object, ...], Method] = {}
    for method in options:
        bits = getattr(method, "bits", None)
        if bits == 8 and _is_second_order(method):
            method = type(method).model_validate({**method.model_dump(), "rounding": "nearest"})
        if bits != 2:
            best.setdefault((method.name, bits, getattr(method, "rate", None)), method)
    return list(best.values())


def _announce(job: Job, workshop: Workshop, sites: tuple[Site, ...], refused: tuple[Refusal, ...], measured: Measurement, schedule: Schedule) -> None:
    kinds = {k: sum(s.kind == k for s in sites) for k in ("weight", "channels", "block")}
    narrowed = "; 8-bit weights in 7 bits, since this processor's integer kernels saturate" if saturates(job.target) else ""
    quality = "no labelled data" if measured.quality is None else f"{job.metric_name} {measured.quality:.4f}"
    recovery = (
        number_of(schedule.recovery_steps, "training step")
        if schedule.recovery_steps
        else "no training (no train split)"
        if job.train is None
        else "no training (too little time)"
    )
    data = [f"{number_of(len(s), 'sample')} {use}" for s, use in ((job.train, "to train on"), (job.evaluation, "to choose by")) if s is not None]
    job.progress.found(
        (
            f"{job.source.name}: {measured.parameters:,} parameters, {count_text(measured.macs)} multiply-adds, {bytes_text(measured.size_bytes)}, {latency_text(measured.latency_ms.median, measured.latency_ms.estimated)}, {'; '.join([quality, *data])}",
            f"{number_of(kinds['weight'], 'weight')} to quantize, {number_of(kinds['channels'], 'set of channels', 'sets of channels')} to prune, {number_of(kinds['block'], 'block')} to drop; {number_of(len(refused), 'place')} left alone, with reasons",
            f"minimising {MINIMISED[job.request.budget.minimize]} for {job.target.name} {job.target.version()}, in {job.clock.seconds:.0f} s: {number_of(schedule.candidates, 'candidate')}, {recovery}, {number_of(schedule.finalists, 'finalist')}{narrowed}",
        )
    )
    if schedule.candidates <= LEAST_CANDIDATES and job.request.plan is None:
        job.progress.note(f"little time: up to {MOST_CANDIDATES} candidates are tried where there is time for them; give more --time")


def _schedule(job: Job, workshop: Workshop, offered: dict[str, list[Method]], speed: Speed, least: int) -> tuple[Schedule, bool, int, float]:
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
    schedule = make_schedule(
        job.clock.seconds,
        job.clock.left,
        Probe(speed.forward, step, candidate),
        options=sum(map(len, offered.values())),
        samples=len(job.calibration if job.calibration is not None else job.example),
        train=len(job.train) if job.train is not None else 0,
        batch=batch,
        least=least,
    )
    if job.train is None and job.calibration is not None:
        schedule = schedule.model_copy(update={"recovery_steps": _calibration_steps(job, speed.forward)})
    job.journal.append("schedule", {"schedule": schedule.model_dump(), "bf16": bf16, "batch": batch, "candidate": candidate}, job.clock.elapsed)
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
    numerics = tuple(Decision(site=s.id, method=m) for s, options in weights.items() for m in _plain(options))
    again = sum(max((speed.seconds(s, [m]) for m in options if _is_second_order(m)), default=0.0) for s, options in weights.items() if structures)
    seconds = 0.0
    for structure in [*structures, none, none][:2]:
        start = time.perf_counter()
        for decisions in ((*structure, *numerics), structure, numerics, none):  # not everything that is offered can be carried out, alone or together
            try:
                artifact = workshop.lower(workshop.build(workshop.plan(decisions)))
            except SlimlineError:
                continue
            break
        job.target.latency([artifact], job.example, batch=job.request.budget.batch, threads=job.request.budget.threads, seconds=2 * TRIAL_SECONDS)
        job.target.run(artifact, job.evaluation if job.evaluation is not None else job.example, threads=2)
        download(artifact.content, exact=False)
        seconds = time.perf_counter() - start
        if seconds > PROBE_SHARE * job.clock.seconds:
            break
    return seconds + again


def _plain(options: list[Method]) -> list[Method]:
    """The first option in 8 bits, rounded to the nearest; else the first. Masks and codebooks of wide layers can take longer than all else: a MiniLM's candidate took 241 s with them."""
    numeric = [m for m in options if m.stage == "numerics"]
    eight = [type(m).model_validate({**m.model_dump(), "rounding": "nearest"}) for m in numeric if getattr(m, "bits", None) == 8 and not m.gains]
    return (eight or numeric)[:1]


def _calibration_steps(job: Job, forward: float) -> int:
    """Steps of label-free distillation on the calibration samples that a third of the time allows."""
    per_step = 6 * forward * CALIBRATION_BATCH  # a quantized forward and backward, and the teacher's forward
    steps = int(0.1 * max(job.clock.left, 0.0) / max(per_step, 1e-9))  # for each of three finalists
    return min(CALIBRATION_STEPS, steps - steps % 50)


class OptionDatabase:
    """What every option loses on ``count`` calibration samples: measured, or from the cache."""

    def __init__(self, job: Job, workshop: Workshop, count: int) -> None:
        self.job, self.workshop, self.count = job, workshop, count
        self._sensitivity: Sensitivity | None = None

    def name(self, site: Site, methods: Sequence[Method]) -> str:
        """Of the cache entry."""
        job = self.job
        offered = [(m.name, m.model_dump()) for m in methods]
        return key("options with added weights", job.target.name, job.fingerprint.model_dump(), site.model_dump(), offered, self.count, job.request.seed)

    def place(self, site: Site, methods: Sequence[Method]) -> tuple[Place, list[Refusal]]:
        name = self.name(site, methods)
        stored = self.job.cache.get(name)
        if stored is not None:
            return Place(site, tuple(_option_from_json(o) for o in stored[1]["options"])), [Refusal.model_validate(r) for r in stored[1]["refused"]]
        if self._sensitivity is None:
            samples = (self.job.calibration if self.job.calibration is not None else self.job.example)[: self.count]
            self._sensitivity = Sensitivity(self.workshop, samples, **({"recalled": self._recalled} if self.job.request.shared is not None else {}))
        place, refused = self._sensitivity.place(site, methods, keep_option)
        about = {"options": [_option_to_json(o) for o in place.options], "refused": [r.model_dump() for r in refused]}
        self.job.cache.put(name, {"none": torch.zeros(1)}, about)
        return place, refused

    def _recalled(self, site: Site, method: Method, measure: Callable[[], float]) -> float:
        """A loss is of the float program, whatever the target: measured for the first one, looked up for the next."""
        name = key("loss", self.job.fingerprint.model_dump(), site.model_dump(), method.name, method.model_dump(), self.count, self.job.request.seed)
        stored = self.job.cache.get(name)
        if stored is None:
            self.job.cache.put(name, {}, measure())
            stored = self.job.cache.get(name)
        assert stored is not None
        return float(stored[1])


@dataclass(frozen=True)
class MeasureOptions:
    """A worker's task: the options of one site. ``moments``: as in the job's own workshop."""

    name: str
    site: str
    methods: tuple[Method, ...]
    count: int
    moments: bool
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"measuring the options of {self.site}"

    def work(self, bench: Bench) -> None:
        bench.workshop.moments = self.moments
        if "options" not in bench.kept:
            bench.kept["options"] = OptionDatabase(bench.job, bench.workshop, self.count)
        bench.kept["options"].place(bench.sites[self.site], self.methods)


def _option_database(job: Job, workshop: Workshop, sites: tuple[Site, ...], offered: dict[str, list[Method]], count: int) -> tuple[list[Place], list[Refusal]]:
    database = OptionDatabase(job, workshop, count)
    tasks = [MeasureOptions(database.name(s, offered[s.id]), s.id, tuple(offered[s.id]), count, workshop.moments) for s in sites]
    share(job, tasks, "measuring options", 0.08, 0.18)
    places: list[Place] = []
    refused: list[Refusal] = []
    for number, site in enumerate(sites):
        place, more = database.place(site, offered[site.id])
        places.append(place)
        refused += more
        job.progress.stage("measuring options", 0.08 + 0.1 * number / len(sites), max(0.0, job.clock.left))
    return places, refused


def _in_integers(place: Place) -> Place:
    """Without the options that compute in float, where there are others."""
    integers = tuple(o for o in place.options if o.execute == "integer")
    return Place(place.site, integers) if place.site.kind == "weight" and integers else place


def keep_option(site: Site) -> Option:
    """Leave the site as it is."""
    return Option("keep", channels=site.features or None)


def _option_to_json(option: Option) -> dict[str, Any]:
    return {
        "label": option.label,
        "decisions": [d.model_dump(mode="json") for d in option.decisions],
        "loss": option.loss,
        "channels": option.channels,
        "dropped": option.dropped,
        "execute": option.execute,
        "factors": option.factors,
        "work": option.work,
        "widths": option.widths,
        "drops": option.drops,
        "coded": option.coded,
        "added": option.added,
        "format": option.format.model_dump(),  # type: ignore[attr-defined]  # every format that reaches the disk is Data
    }


def _option_from_json(data: dict[str, Any]) -> Option:
    from slimline.core.formats import format_of
    from slimline.core.plan import Decision

    return Option(
        data["label"],
        tuple(Decision.model_validate(d) for d in data["decisions"]),
        data["loss"],
        data["channels"],
        data["dropped"],
        format_of(data["format"]),
        data["execute"],
        tuple(map(tuple, data["factors"])),
        tuple((name, share) for name, share in data["work"]),
        tuple((site, count) for site, count in data["widths"]),
        tuple(data["drops"]),
        data["coded"],
        data["added"],
    )


def _timing(job: Job, workshop: Workshop, baseline: Artifact, places: list[Place], candidate: float) -> Any:
    from slimline.search.space import Timing

    kept = job.journal.last("timing")
    if kept is not None:  # measured once: a resumed run must choose by the same costs
        return Timing(kept["full"], kept["narrow"], kept["rest"], kept["edge"])
    timing, _ = measure_timing(
        workshop,
        baseline,
        places,
        tuple(job.methods),
        job.base_plan,
        batch=job.request.budget.batch,
        threads=job.request.budget.threads,
        note=job.note,
        most=max(2, int(TIMING_SHARE * job.clock.seconds / max(candidate, 1e-9))),
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
