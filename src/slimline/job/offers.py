"""Which options are measured: all that the methods offer, or what there is time for."""

from __future__ import annotations

from collections.abc import Callable

from slimline.core.contracts import saturates
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.job.context import Job
from slimline.job.probing import Speed, is_second_order, kind_of, to_nearest
from slimline.model.reconstruct import repairing
from slimline.search.schedule import DOWNSTREAM, FEWEST_SAMPLES, LEAST_SAMPLES
from slimline.search.sensitivity import FACTOR_SAMPLES, TEXT_SAMPLES
from slimline.search.strategies.replay import planned

OPTIONS_SHARE = 0.2  # of the time, that measuring options may take
SLOW_KIND = 0.5  # of that, which encoding all weights in one way may take where there is no time for everything
FACTORED_SHARE = 0.05  # of the time, that options of factored layers may take to measure
FACTOR_RUNS = 2  # as they are, and rounded to four bits
REPAIR_PASSES = 4  # an option that builds the model anew is repaired and its norms measured: forwards of the samples that repair it


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


def fewer(job: Job, sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed) -> tuple[dict[str, list[Method]], int]:
    """The offers that there is time to measure, and on how many samples at least; what is left out is said in the report.

    First go every second width and all but one setting of each number of bits; then all widths but the two widest, and 2 bits; at last what takes long to encode, where second-order
    rounding of 8 bits becomes rounding to the nearest.
    """
    kinds, allowed = {s.id: s.kind for s in sites}, OPTIONS_SHARE * job.clock.seconds
    apart = {s.id for s in sites if s.kind in ("input", "model")}  # these have a share of their own

    def seconds(part: dict[str, list[Method]], samples: int) -> float:
        count = sum(sum(m.stage == "numerics" or kinds[s] != "weight" for m in options) for s, options in part.items() if s not in apart)
        return count * speed.forward * DOWNSTREAM * samples + sum(speed.seconds(s, part[s.id]) for s in sites if s.kind == "weight")

    def thinned(part: dict[str, list[Method]], few: Callable[[list[Method]], list[Method]], which: slice) -> dict[str, list[Method]]:
        widths = {s: options[which] for s, options in part.items() if kinds[s] == "channels" and len(options) > 2}
        return {s: widths.get(s) or (options if s in apart else few(options)) for s, options in part.items()}

    needed = seconds(offered, LEAST_SAMPLES)
    if needed <= allowed:
        return offered, LEAST_SAMPLES
    half = thinned(offered, _first_of_each, slice(1, None, 2))
    few = half if seconds(half, LEAST_SAMPLES) <= allowed else thinned(half, _wide, slice(2))
    if seconds(few, LEAST_SAMPLES) > allowed:
        few = _quick(sites, few, speed, SLOW_KIND * allowed)
    said = "half of all options" if few is half else f"{1 - sum(map(len, few.values())) / sum(map(len, offered.values())):.0%} of all options"
    job.note(f"{said}: measuring them would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have them tried")
    return few, LEAST_SAMPLES if seconds(few, LEAST_SAMPLES) <= allowed else FEWEST_SAMPLES


def _quick(sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed, most: float) -> dict[str, list[Method]]:
    """Without the kinds of numeric options that take more than ``most`` seconds to encode all weights: masks and codebooks of wide layers. Eight bits stay, rounded to the nearest."""
    weights = [s for s in sites if s.kind == "weight"]
    taken: dict[str, float] = {}
    for site in weights:
        for kind, method in {kind_of(site, m): m for m in offered[site.id]}.items():
            taken[kind] = taken.get(kind, 0.0) + speed.of_kind(site, method)

    def quick(site: Site) -> list[Method]:
        found: list[Method] = []
        for method in offered[site.id]:
            if taken[kind_of(site, method)] <= most:
                found.append(method)
            elif getattr(method, "bits", None) == 8 and is_second_order(method):
                found.append(to_nearest(method))
        return list(dict.fromkeys(found))

    return offered | {s.id: quick(s) for s in weights}


def affordable(job: Job, sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed, samples: int) -> dict[str, list[Method]]:
    """Without those that build the model anew and without factored layers, where measuring them takes more than their share; said in the report."""
    repair = _repair(job)
    repaired = {s.id: offered[s.id] for s in sites if s.kind in ("input", "model") and not s.tokens}
    shortened = {s.id: offered[s.id] for s in sites if s.tokens}
    factored = {s.id: [m for m in offered[s.id] if m.stage == "structure"] for s in sites if s.kind == "weight"}
    for part, per_option in (
        (repaired, repair + samples),
        (shortened, max(samples, TEXT_SAMPLES)),
        (factored, FACTOR_RUNS * min(samples, FACTOR_SAMPLES)),
    ):
        if (needed := sum(map(len, part.values())) * speed.forward * per_option) > FACTORED_SHARE * job.clock.seconds:
            names = ", ".join(sorted({m.name for options in part.values() for m in options}))
            job.note(f"{names}: measuring these options would take {needed:.0f} s of {job.clock.seconds:.0f} s; give more --time to have them tried")
            offered = {s: [m for m in options if m not in part.get(s, ())] for s, options in offered.items()}
    return offered


def blocks_repaired(job: Job, sites: tuple[Site, ...], offered: dict[str, list[Method]], speed: Speed) -> bool:
    """Whether there is time to repair each dropped block before it is measured. Unrepaired, a block of ResNet-20 seemed to lose 0.084 nats, and candidates without it lost a quarter of that."""
    dropped = 2 * sum(len(offered[s.id]) for s in sites if s.kind == "block")  # alone, and with its neighbour
    return job.calibration is not None and dropped * speed.forward * (_repair(job) + FACTOR_SAMPLES) <= FACTORED_SHARE * job.clock.seconds


def _repair(job: Job) -> int:
    """Forward passes of one sample that repairing a model in closed form takes."""
    return REPAIR_PASSES * len(repairing(job.calibration)) if job.calibration is not None else 0


def _first_of_each(options: list[Method]) -> list[Method]:
    """One option of each method, number of bits and rate: the first, or the one that rounds by second-order information, which lost half as much on EfficientNet-Lite0."""
    best: dict[tuple[object, ...], Method] = {}
    for method in options:
        place = (method.name, getattr(method, "bits", None), getattr(method, "rate", None))
        if place not in best or getattr(method, "rounding", None) == "second_order":
            best[place] = method
    return list(best.values())


def _wide(options: list[Method]) -> list[Method]:
    """Without those of 2 bits."""
    return [m for m in options if getattr(m, "bits", None) != 2]
