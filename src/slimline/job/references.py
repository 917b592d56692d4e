"""What the result is compared with: plain int8, uniform pruning, each method alone; all timed together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree

from slimline.archive.container import download
from slimline.core.contracts import Artifact
from slimline.core.plan import Plan
from slimline.core.result import (
    Reference,
)
from slimline.core.trial import Latency, Measurement
from slimline.errors import SlimlineError
from slimline.job.certificate import Outcome
from slimline.job.context import Job, as_outputs, flat
from slimline.job.found import Found, measure, scored, timed
from slimline.measure.agreement import agreement
from slimline.measure.plain import Candidate, choose
from slimline.report.sentence import listed, number_of
from slimline.search.space import Space
from slimline.search.strategies.allocate import corrections_from, solve
from slimline.search.strategies.uniform import uniform_choice

PLAIN = "plain int8"  # the reference that the table shows: its archive is the smallest one, as the result's; others' and the original's are the fastest, a few percent larger
UNIFORM_KEEP = 0.7  # of all channels, with int8: what handwork begins with
ALONE_SAMPLES = 2_000  # of the holdout, on which uniform pruning and each method alone are scored
FINAL_SECONDS = 1.5  # of latency measurement for each artefact of the last round
PLAIN_SHARE = 0.12  # of the time budget that the reference "plain int8" may take
CALIBRATING = 3.0  # forward passes that a runtime's quantizer takes for each calibration sample
TRIAL = 0.4  # seconds of latency measurement per setting


@dataclass
class Compared:
    """A reference with its artefact, before the last round of latencies."""

    name: str
    artifact: Artifact
    parameters: int
    macs: int
    note: str = ""
    plan: Plan | None = None
    steps: int = 0


def references(job: Job, found: Found, outcome: Outcome) -> list[Compared]:
    """Plain int8, uniform pruning, and each method alone at the loss of what is delivered; none recovered. As many as time allows; all where they are wanted in full."""
    made: list[Compared] = []
    left_out: list[str] = []
    slowest = max((t.seconds for t in found.trials), default=0.0)  # the next must end in time
    with timed(job, "measuring references", 0.95):
        made += _plain(job, found)
        level = max(outcome.finalist.trial.measured_loss or 0.0, 1e-3)
        for name, plan in _simple_plans(job, found, level):
            if job.clock.over(0.97 - slowest / job.clock.seconds) and not job.request.references_full:
                left_out.append(name)
                continue
            start = time.monotonic()
            try:
                built = found.workshop.build(plan)
                made.append(Compared(name, found.workshop.lower(built), parameters_of(built.program), built.program.macs(), plan=plan))
            except SlimlineError as error:
                job.note(f"the reference {name}: {error.message}")
            slowest = max(slowest, time.monotonic() - start)
        if left_out:
            job.cut(f"the reference{'s' if len(left_out) > 1 else ''} {listed(left_out)}: no time was left")
    return made


def parameters_of(program: Any) -> int:
    return sum(t.numel() for t in program.parameters().values() if t.is_floating_point())


def _simple_plans(job: Job, found: Found, level: float) -> list[tuple[str, Plan]]:
    plans: list[tuple[str, Plan]] = []
    uniform = uniform_choice(found.space, UNIFORM_KEEP, 8)
    if any(place.site.kind == "channels" for place in found.space.places):
        plans.append(("uniform pruning", found.space.plan(uniform)))
    corrections = corrections_from(found.space, found.trials)
    for method in job.methods:
        space = only(found.space, method)
        if method == "keep" or all(len(p.options) == 1 for p in space.places):
            continue
        choice = solve(
            space,
            job.request.budget.model_copy(update={"size_bytes": None, "download_bytes": None, "latency_ms": None, "memory_bytes": None, "macs": None}),
            level,
            corrections,
        )
        if choice is not None and choice != space.nothing:
            plans.append((f"{method} alone", space.plan(choice)))
    return plans


def only(space: Space, method: str) -> Space:
    """The space with one method's options alone."""
    from dataclasses import replace

    places = tuple(replace(p, options=(p.options[0], *(o for o in p.options[1:] if all(d.method.name == method for d in o.decisions)))) for p in space.places)
    return replace(space, places=places)


def _plain(job: Job, found: Found) -> list[Compared]:
    """The runtime's own quantizer over its settings: the smallest and the fastest within one point."""
    if job.calibration is None:
        job.note("the reference plain int8: there are no calibration samples")
        return []
    speed = job.journal.last("speed")
    likely = CALIBRATING * len(job.calibration) * float(speed["forward"]) if speed is not None else 0.0
    if likely > PLAIN_SHARE * job.clock.seconds and job.clock.elapsed + likely > job.clock.seconds and not job.request.references_full:
        job.cut(f"the reference plain int8: no time was left ({likely:.0f} s)")
        return []
    limit = job.clock.elapsed + PLAIN_SHARE * job.clock.seconds
    made: dict[str, Artifact] = {}
    left_out: list[str] = []
    for quantized in job.target.plain_int8(found.baseline, job.calibration):
        if quantized.artifact is not None:
            made[quantized.label] = quantized.artifact
        else:
            left_out.append(quantized.label)
        if made and (job.clock.elapsed > limit or job.clock.over(0.96)):
            job.cut(f"plain int8: {number_of(len(made), 'setting was', 'settings were')} tried, then its share of the time was up")
            break
    if not made:
        why = f"the runtime's quantizer made none of {', '.join(left_out)}" if left_out else f"no quantizer of {job.target.name}'s own is installed"
        job.note(f"the reference plain int8: {why}")
        return []
    budget = job.request.budget
    latencies = job.target.latency(list(made.values()), job.usual, batch=budget.batch, threads=budget.threads, seconds=min(TRIAL, 4.0 / len(made)))
    candidates = [Candidate(n, a.size_bytes, t.median, scored(job, found, a)[0]) for (n, a), t in zip(made.items(), latencies, strict=True)]
    chosen = choose(candidates, found.baseline_measurement.quality)
    if chosen is None:
        return []
    base = found.baseline_measurement
    within = "" if chosen.within else "; none keeps the quality within one point: the best is shown"
    named = {f"{PLAIN}, smallest": chosen.smallest, f"{PLAIN}, fastest": chosen.fastest}
    if chosen.smallest.label == chosen.fastest.label:
        named = {PLAIN: chosen.smallest}
    return [Compared(n, made[c.label], base.parameters, base.macs, f"{c.label}; of {number_of(len(made), 'setting')}{within}") for n, c in named.items()]


def final_round(job: Job, found: Found, outcome: Outcome, compared: Sequence[Compared]) -> tuple[Measurement, Measurement, dict[str, Reference]]:
    """Baseline, result and references timed together, interleaved; qualities on the holdout (else on the evaluation samples)."""
    budget = job.request.budget
    artifacts = [found.baseline, outcome.finalist.artifact, *(c.artifact for c in compared)]
    seconds = min(FINAL_SECONDS, max(0.2, 0.06 * job.clock.seconds / len(artifacts)))
    with timed(job, "timing the result beside the references", 0.98):
        latencies = job.target.latency(artifacts, job.usual, batch=budget.batch, threads=budget.threads, seconds=seconds)
        base = measure(
            job,
            found.workshop,
            found.baseline,
            latencies[0],
            outcome.baseline_quality if outcome.baseline_quality is not None else found.baseline_measurement.quality,
            found.workshop.program,
            outcome.baseline_rss,
        )
        trial_quality = outcome.finalist.trial.measurement.quality if outcome.finalist.trial.measurement is not None else None
        result = measure(
            job,
            found.workshop,
            outcome.finalist.artifact,
            latencies[1],
            outcome.quality if outcome.quality is not None else trial_quality,
            outcome.finalist.built.program,
            outcome.rss,
            exact=True,
        )
        found_references: dict[str, Reference] = {}
        for c, latency in zip(compared, latencies[2:], strict=True):
            found_references[c.name] = reference(job, found, outcome, c, latency)
    smallest, fastest = found_references.get(f"{PLAIN}, smallest"), found_references.get(f"{PLAIN}, fastest")
    if smallest is not None and fastest is not None:
        both = {"size_bytes": smallest.size_bytes, "download_bytes": smallest.download_bytes, "memory_bytes": smallest.memory_bytes}
        plain = fastest.model_copy(
            update={**both, "note": f"bytes of the smallest setting ({smallest.note}), latency and quality of the fastest ({fastest.note})"}
        )
        found_references = {PLAIN: plain, **found_references}
    return base, result, found_references


def reference(job: Job, found: Found, outcome: Outcome, compared: Compared, latency: Latency) -> Reference:
    quality, fidelity = None, None
    note = compared.note
    if outcome.samples is not None:
        count = len(outcome.samples)
        if not compared.name.startswith(PLAIN) and not job.request.references_full and count > ALONE_SAMPLES:
            count, note = ALONE_SAMPLES, f"{note + '; ' if note else ''}quality on {ALONE_SAMPLES:,} of the holdout samples"
        samples, original = outcome.samples[:count], _pytree.tree_map_only(torch.Tensor, lambda t: t[:count], outcome.baseline_outputs)
        outputs = job.target.run(compared.artifact, samples, threads=2)
        quality = job.score(as_outputs(outputs, found.original), samples, original)[0]
        fidelity = agreement(outputs, flat(original), classes=job.classes)
    archive = download(compared.artifact.content, exact=compared.name.startswith(PLAIN))
    return Reference(
        size_bytes=compared.artifact.size_bytes,
        download_bytes=archive.bytes,
        download_codec=archive.codec,
        download_above_entropy=archive.above_entropy,
        memory_bytes=job.target.memory(compared.artifact, job.longest),
        recovery_steps=compared.steps,
        parameters=compared.parameters,
        macs=compared.macs,
        latency_ms=latency,
        quality=quality,
        fidelity=fidelity,
        note=note,
    )
