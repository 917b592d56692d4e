"""The end of a job: the certificate, the references beside it, and the report with its reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from slimline.core.contracts import Artifact
from slimline.core.formats import Affine
from slimline.core.plan import Plan
from slimline.core.result import (
    ArtefactFile,
    Certificate,
    Cost,
    DecisionRecord,
    DropInterval,
    Point,
    Prediction,
    Predictions,
    Reference,
    Refused,
    Report,
    Verdict,
    ratios,
)
from slimline.core.samples import Samples
from slimline.core.trial import Agreement, Latency, Measurement, Trial
from slimline.errors import SlimlineError
from slimline.job.candidates import Finalist, Found, measure, scored, timed
from slimline.job.context import STATE, Job, as_outputs, environment, flat, sha256
from slimline.measure.agreement import agreement
from slimline.measure.certify import bootstrap_interval, decide, drop_interval, expected_half_width, fixed_sequence, shrunk
from slimline.measure.fresh import run_fresh
from slimline.measure.plain import Candidate, choose
from slimline.model.program import Program
from slimline.model.recover import evaluate
from slimline.model.trace import quiet, trace
from slimline.report.sentence import bytes_text, count_text, difference_text, sentence, time_text
from slimline.search.space import Space
from slimline.search.strategies.allocate import corrections_from, solve
from slimline.search.strategies.uniform import uniform_choice
from slimline.search.timing import per_layer
from slimline.search.workshop import Built

UNCERTIFIABLE = 0.8  # of the allowance: an interval that alone takes so much leaves no drop to be certified
CHANGED = 3.0  # allowances of answers that may differ from the original's where no test can be passed
UNIFORM_KEEP = 0.7  # of all channels, with int8: what handwork begins with
FINAL_SECONDS = 1.5  # of latency measurement for each artefact of the last round
PLAIN_SHARE = 0.12  # of the time budget that the reference "plain int8" may take


@dataclass
class Outcome:
    """What is delivered, and what was found about it on the holdout."""

    finalist: Finalist
    verdict: Verdict
    interval: DropInterval | None
    certificate: Certificate | None
    fidelity: Agreement | None
    close: Agreement | None
    quality: float | None
    baseline_quality: float | None
    rss: int | None
    baseline_rss: int | None
    samples: Samples | None
    baseline_outputs: Any = None


def half_width(job: Job, found: Found, scores: Sequence[torch.Tensor | None]) -> float:
    """What the interval on the holdout will add to the observed drop, from how often finalists and original differ here."""
    samples = job.source.data("holdout")
    if samples is None or found.baseline_scores is None:
        return 0.0
    differing = [float((s - found.baseline_scores).abs().mean()) for s in scores if s is not None]
    discordance = max(differing, default=0.05)
    return expected_half_width(discordance, len(samples))


def order(job: Job, found: Found, finalists: Sequence[Finalist]) -> list[Finalist]:
    """The certificate's sequence, at most three: from the most conservative to the best objective, those likely to pass; the safest if none is."""
    budget = job.request.budget
    kept = [f for f in finalists if not [v for v in f.trial.violations if v.quantity != "drop"]] or list(finalists)
    base = found.baseline_measurement.quality
    if base is None:
        return [min(kept, key=_objective(job))][:1]
    allowed = budget.max_drop.allowed(base)
    count = len(job.evaluation) if job.evaluation is not None else 0

    def margin(f: Finalist) -> float:
        """Drop to expect on the holdout, plus the half-width there."""
        discordance = 0.05 if f.scores is None or found.baseline_scores is None else float((f.scores - found.baseline_scores).abs().mean())
        assert f.trial.measurement is not None and f.trial.measurement.quality is not None
        drop = shrunk(base - f.trial.measurement.quality, discordance, count, len(finalists))
        return drop + half_width(job, found, [f.scores])

    safest = min(kept, key=margin)
    likely = sorted([f for f in kept if margin(f) <= allowed], key=margin)
    least = min(half_width(job, found, [f.scores]) for f in kept)
    if not likely and least > UNCERTIFIABLE * allowed:  # the holdout is too small to certify anything: no test can choose, so fidelity does
        close = [f for f in kept if faithful(f.trial, base, allowed)]
        return [min(close, key=_objective(job))] if close else [safest]
    # In a fixed sequence a last, daring step costs nothing: if it fails, the one before is delivered.
    seen = [
        f
        for f in kept
        if f.trial.measurement is not None
        and f.trial.measurement.quality is not None
        and base - f.trial.measurement.quality <= allowed - 0.5 * half_width(job, found, [f.scores])
    ]
    steps = [safest]
    for finalist in [*likely, *sorted((f for f in seen if f not in likely), key=margin)]:
        if _objective(job)(finalist) < 0.995 * _objective(job)(steps[-1]) and finalist is not safest:
            steps.append(finalist)
    if len(steps) > 3:
        steps = [steps[0], steps[-2], steps[-1]]
    return steps


def faithful(trial: Trial, base: float, allowed: float) -> bool:
    """Within the allowance as far as seen, and few answers changed: at most ``CHANGED`` times the allowance."""
    m, f = trial.measurement, trial.fidelity
    if m is None or m.quality is None or base - m.quality > allowed:
        return False
    return f is None or f.top1 is None or 1 - f.top1 <= CHANGED * allowed


def _objective(job: Job) -> Callable[[Finalist], float]:
    def value(finalist: Finalist) -> float:
        assert finalist.trial.measurement is not None
        return finalist.trial.measurement.cost(job.request.budget.minimize)

    return value


def certify(job: Job, found: Found, sequence: Sequence[Finalist]) -> Outcome:
    """Open the holdout, once: each finalist's file runs in a fresh process until the first one fails its test."""
    opened = job.journal.last("certified")
    samples = job.source.data("holdout")
    base = found.baseline_measurement.quality
    folder = job.directory / STATE / "finalists"
    folder.mkdir(parents=True, exist_ok=True)
    if samples is None or base is None:
        finalist = sequence[0]
        _, rss = _fresh(folder, finalist, job.example)
        job.note("whether quality was kept: there is no data to measure it on")
        verdict: Verdict = "fail" if finalist.trial.violations else "inconclusive"
        return Outcome(finalist, verdict, None, None, None, finalist.trial.agreement, None, None, rss, None, None)
    with timed(job, "certifying on the holdout", 0.92):
        baseline_file = folder / f"baseline{found.baseline.suffix}"
        found.baseline.write(baseline_file)
        raw, baseline_rss = run_fresh(baseline_file, found.baseline.inputs, samples)
        original = as_outputs(raw, found.original)
        baseline_quality, baseline_scores = job.score(original, samples, original)
        allowed = job.request.budget.max_drop.allowed(baseline_quality)
        seen: dict[int, tuple[Any, int, float]] = {}

        def test(place: int) -> tuple[DropInterval, str]:
            outputs, rss = _fresh(folder, sequence[place], samples)
            shaped = as_outputs(outputs, found.original)
            quality, scores = job.score(shaped, samples, original)
            seen[place] = (shaped, rss, quality)
            if scores is not None and baseline_scores is not None:
                return drop_interval(baseline_scores, scores, allowed)
            targets = samples.targets if samples.targets is not None else original
            return bootstrap_interval(job.metric, original, shaped, targets, allowed, job.request.seed)

        source = job.source.holdout_source or "from_train"
        names = [f.trial.plan.digest for f in sequence]
        if opened is not None and opened.get("sequence") == names:
            job.note("the holdout was opened by an earlier part of this run with the same finalists: the same test is repeated, nothing is chosen by it again")
        job.journal.append("certified", {"sequence": names}, job.clock.elapsed)
        place, interval, certificate = fixed_sequence([(f.trial.plan.digest, lambda i=i: test(i)) for i, f in enumerate(sequence)], source)  # type: ignore[misc, arg-type]
    finalist = sequence[place]
    shaped, rss, quality = seen[place]
    verdict = decide(interval, source)  # type: ignore[arg-type]
    if [v for v in finalist.trial.violations if v.quantity != "drop"]:
        verdict = "fail"
    if source == "from_train":
        job.note("generalisation: the holdout was taken from the training data, which the original has seen, so nothing is certified")
    fidelity = agreement(flat(shaped), flat(original))
    assert finalist.built.stored is not None
    part = samples[: min(len(samples), 500)]
    stored = evaluate_stored(finalist, part)
    close = agreement(tuple(t[: len(part)] for t in flat(shaped)), flat(stored))
    return Outcome(finalist, verdict, interval, certificate, fidelity, close, quality, baseline_quality, rss, baseline_rss, samples, original)


def evaluate_stored(finalist: Finalist, samples: Samples) -> Any:
    """Outputs of the stored form in PyTorch: what the artefact must agree with."""
    assert finalist.built.stored is not None
    return evaluate(finalist.built.stored.module, samples)


def _fresh(folder: Path, finalist: Finalist, samples: Samples) -> tuple[tuple[torch.Tensor, ...], int]:
    file = folder / f"{finalist.trial.plan.digest}{finalist.artifact.suffix}"
    finalist.artifact.write(file)
    return run_fresh(file, finalist.artifact.inputs, samples)


# -- references ---------------------------------------------------------------------------------------


@dataclass
class Compared:
    """A reference with its artefact, before the last round of latencies."""

    name: str
    artifact: Artifact
    parameters: int
    macs: int
    note: str = ""


def references(job: Job, found: Found, outcome: Outcome) -> list[Compared]:
    """Plain int8, uniform pruning, and each method alone at the loss of what is delivered; none recovered. As many as time allows."""
    made: list[Compared] = []
    with timed(job, "measuring references", 0.95):
        made += _plain(job, found)
        level = max(outcome.finalist.trial.measured_loss or 0.0, 1e-3)
        for name, plan in _simple_plans(job, found, level):
            if job.clock.over(0.97):
                job.note(f"the reference {name}: no time was left")
                continue
            try:
                built = found.workshop.build(plan)
                made.append(Compared(name, found.workshop.lower(built), _parameters(built.program), built.program.macs()))
            except SlimlineError as error:
                job.note(f"the reference {name}: {error.message}")
    return made


def _parameters(program: Any) -> int:
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
    quantizer = getattr(job.target, "plain_int8", None)
    if quantizer is None or job.calibration is None:
        job.note("the reference plain int8: there are no calibration samples")
        return []
    limit = job.clock.elapsed + PLAIN_SHARE * job.clock.seconds
    made: dict[str, Artifact] = {}
    left_out: list[str] = []
    for quantized in quantizer(found.baseline, job.calibration):
        if quantized.artifact is not None:
            made[quantized.variant.label] = quantized.artifact
        else:
            left_out.append(quantized.variant.label)
        if made and (job.clock.elapsed > limit or job.clock.over(0.96)):
            job.note(f"plain int8: {len(made)} of 12 settings were tried before their share of the time was up")
            break
    if not made:
        job.note(f"the reference plain int8: the runtime's quantizer made none of {', '.join(left_out)}")
        return []
    budget = job.request.budget
    latencies = job.target.latency(list(made.values()), job.example, batch=budget.batch, threads=budget.threads, seconds=min(TRIAL, 4.0 / len(made)))
    candidates = [Candidate(n, a.size_bytes, t.median, scored(job, found, a)[0]) for (n, a), t in zip(made.items(), latencies, strict=True)]
    chosen = choose(candidates, found.baseline_measurement.quality)
    if chosen is None:
        return []
    base = found.baseline_measurement
    within = "" if chosen.within else "; none keeps the quality within one point: the best is shown"
    return [
        Compared(f"plain int8, {what}", made[c.label], base.parameters, base.macs, f"{c.label}; of {len(made)} settings{within}")
        for what, c in (("smallest", chosen.smallest), ("fastest", chosen.fastest))
    ]


TRIAL = 0.4  # seconds of latency measurement per setting


def final_round(job: Job, found: Found, outcome: Outcome, compared: Sequence[Compared]) -> tuple[Measurement, Measurement, dict[str, Reference]]:
    """Baseline, result and references timed together, interleaved; qualities on the holdout (else on the evaluation samples)."""
    budget = job.request.budget
    artifacts = [found.baseline, outcome.finalist.artifact, *(c.artifact for c in compared)]
    seconds = min(FINAL_SECONDS, max(0.2, 0.06 * job.clock.seconds / len(artifacts)))
    with timed(job, "timing the result beside the references", 0.98):
        latencies = job.target.latency(artifacts, job.example, batch=budget.batch, threads=budget.threads, seconds=seconds)
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
        )
        found_references: dict[str, Reference] = {}
        for c, latency in zip(compared, latencies[2:], strict=True):
            found_references[c.name] = _reference(job, found, outcome, c, latency)
    smallest, fastest = found_references.get("plain int8, smallest"), found_references.get("plain int8, fastest")
    if smallest is not None and fastest is not None:
        both = {"size_bytes": smallest.size_bytes, "download_bytes": smallest.download_bytes, "memory_bytes": smallest.memory_bytes}
        plain = fastest.model_copy(
            update={**both, "note": f"bytes of the smallest setting ({smallest.note}), latency and quality of the fastest ({fastest.note})"}
        )
        found_references = {"plain int8": plain, **found_references}
    return base, result, found_references


def _reference(job: Job, found: Found, outcome: Outcome, compared: Compared, latency: Latency) -> Reference:
    from slimline.measure.size import download_bytes

    quality, fidelity = None, None
    if outcome.samples is not None:
        outputs = job.target.run(compared.artifact, outcome.samples, threads=2)
        shaped = as_outputs(outputs, found.original)
        quality = job.score(shaped, outcome.samples, outcome.baseline_outputs)[0]
        fidelity = agreement(outputs, flat(outcome.baseline_outputs))
    download, codec = download_bytes(compared.artifact.payload)
    return Reference(
        size_bytes=compared.artifact.size_bytes,
        download_bytes=download,
        download_codec=codec,
        memory_bytes=job.target.memory(compared.artifact, job.example),
        parameters=compared.parameters,
        macs=compared.macs,
        latency_ms=latency,
        quality=quality,
        fidelity=fidelity,
        note=compared.note,
    )


# -- the report -----------------------------------------------------------------------------------------


def build_report(
    job: Job,
    found: Found,
    outcome: Outcome,
    base: Measurement,
    result: Measurement,
    compared: dict[str, Reference],
    finalists: Sequence[Finalist],
    *,
    interrupted: bool,
) -> Report:
    """Everything together; pure but for reading the runtime's profile of the result."""
    obstacles = _obstacles(job, outcome, result)
    verdict: Verdict = "inconclusive" if interrupted else outcome.verdict
    if not interrupted and [v for v in job.request.budget.violations(result) if v.quantity != "drop"]:
        verdict = "fail"
    schedule = found.schedule.model_copy(update={"spent": dict(job.spent), "schedule_truncated": job.clock.over(0.97)})
    return Report(
        slimline=environment()["slimline"],
        verdict=verdict,
        sentence=sentence(verdict, base, result, outcome.interval, obstacles),
        interrupted=interrupted,
        model=job.source.name,
        target=job.target.name,
        device=job.request.device,
        metric=job.metric_name,
        minimize=job.request.budget.minimize,
        seed=job.request.seed,
        command=job.request.command,
        schedule=schedule,
        budget=job.request.budget.model_dump(mode="json"),
        baseline=base,
        compressed=result,
        ratio=ratios(base, result),
        compression_ratio=result.size_bytes / base.size_bytes,
        drop=outcome.interval,
        certificate=None if interrupted else outcome.certificate,
        agreement=outcome.close,
        fidelity=outcome.fidelity,
        references=compared,
        pareto=_points(job, found, outcome, finalists),
        decisions=_decisions(job, found, outcome.finalist),
        refused=tuple(Refused(where=r.where, reason=r.reason) for r in found.refused),
        predictions=_predictions(found),
        artefact=ArtefactFile(file=f"model{outcome.finalist.artifact.suffix}", sha256=sha256(outcome.finalist.artifact.payload)),
        not_checked=tuple(job.notes),
        environment=environment(),
        obstacles=obstacles,
    )


def _obstacles(job: Job, outcome: Outcome, result: Measurement) -> tuple[str, ...]:
    said = [
        f"{v.quantity} is {_amount(v.quantity, v.value)}, the limit {_amount(v.quantity, v.limit)}"
        for v in job.request.budget.violations(result)
        if v.quantity != "drop"
    ]
    i, quality = outcome.interval, outcome.baseline_quality
    if i is not None and i.upper_95 > i.allowed:
        said.append(
            f"the drop is {difference_text(i.observed, quality)} with a 95 % limit of {difference_text(i.upper_95, quality)}, allowed is {difference_text(i.allowed, quality)}, on {i.samples:,} samples"
            + (f"; at this drop it takes {i.needed_samples:,} to decide" if i.needed_samples else "")
        )
    return tuple(said)


def _amount(quantity: str, value: float) -> str:
    return time_text(value) if quantity == "latency" else count_text(value) if quantity == "macs" else bytes_text(value)


def _points(job: Job, found: Found, outcome: Outcome, finalists: Sequence[Finalist]) -> tuple[Point, ...]:
    last = {f.trial.plan.digest: f for f in finalists}
    base = found.baseline_measurement.quality
    trials = [t for t in found.trials if t.measurement is not None] + [f.trial for f in finalists]
    best = _front_of(trials, job)
    points = []
    for trial in trials:
        m = trial.measurement
        assert m is not None
        finalist = last.get(trial.plan.digest)
        done = finalist is not None and trial is finalist.trial
        points.append(
            Point(
                plan=trial.plan.digest,
                label=_label(trial),
                size_bytes=m.size_bytes,
                latency_ms=m.latency_ms.median,
                memory_bytes=m.memory_bytes,
                macs=m.macs,
                quality=m.quality,
                drop=None if base is None or m.quality is None else base - m.quality,
                chosen=done and finalist is outcome.finalist,
                on_front=id(trial) in best,
                fidelity=trial.fidelity,
            )
        )
    return tuple(points)


def _front_of(trials: Sequence[Trial], job: Job) -> set[int]:
    """Trials that no other beats in size, latency and quality at once."""

    def corner(t: Trial) -> tuple[float, float, float]:
        assert t.measurement is not None
        return t.measurement.size_bytes, t.measurement.latency_ms.median, -(t.measurement.quality or 0.0)

    corners = [(id(t), corner(t)) for t in trials]
    return {i for i, a in corners if not any(all(x <= y for x, y in zip(b, a, strict=True)) and b != a for _, b in corners)}


def _label(trial: Trial) -> str:
    counts: dict[str, int] = {}
    for d in trial.plan.decisions:
        name = d.method.name + (f" {bits} bits" if (bits := getattr(d.method, "bits", None)) else "")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{n} x {name}" for name, n in counts.items()) or "nothing changed"


def _predictions(found: Found) -> Predictions:
    known = [t for t in found.trials if t.predicted_loss is not None and t.measured_loss is not None and t.measurement is not None]
    pairs = tuple(Prediction(plan=t.plan.digest, predicted=t.predicted_loss or 0.0, measured=t.measured_loss or 0.0) for t in known)
    correlation = float(stats.spearmanr([p.predicted for p in pairs], [p.measured for p in pairs]).statistic) if len(pairs) > 2 else None

    def error(name: str, quantity: Any) -> float | None:
        ratios_ = [abs(t.predicted[name] / t.measurement.cost(quantity) - 1) for t in known if name in t.predicted and t.measurement is not None]
        return sum(ratios_) / len(ratios_) if ratios_ else None

    correlation = None if correlation is None or math.isnan(correlation) else correlation
    return Predictions(candidates=pairs, rank_correlation=correlation, size_error=error("size", "size"), latency_error=error("latency", "latency"))


def _decisions(job: Job, found: Found, finalist: Finalist) -> tuple[DecisionRecord, ...]:
    budget = job.request.budget
    before = per_layer(job.target.operations(found.baseline, job.example, threads=budget.threads), found.baseline_measurement.latency_ms)
    assert finalist.trial.measurement is not None
    after = per_layer(job.target.operations(finalist.artifact, job.example, threads=budget.threads), finalist.trial.measurement.latency_ms)
    plan, space = finalist.trial.plan, found.space
    choice = space.choice(plan) or space.nothing
    total = max(space.loss(choice), 1e-9)
    records = []
    for place, taken in zip(space.places, choice, strict=True):
        site, option = place.site, place.options[taken]
        others = sorted([o for i, o in enumerate(place.options) if i != taken], key=lambda o: o.loss)
        use = found.workshop.program.weights.get(site.id)
        new = finalist.built.program.weights.get(site.id)
        gone = site.kind != "block" and any(site.module == b or site.module.startswith(b + ".") for b in _dropped(plan))
        names = [n for n in finalist.built.program.weights if n == site.id or (option.factors and n.startswith(site.module + "."))]
        stored = sum(_stored_bytes(finalist.built, n) for n in names)
        cost = Cost(loss_predicted=option.loss)
        if use is not None:
            cost = Cost(
                bytes_before=4 * math.prod(use.shape),
                bytes_predicted=0 if gone else sum(map(option.format.estimate, option.factors or (new.shape if new is not None else use.shape,))),
                bytes_measured=0 if gone else stored,
                ms_before=before.get(site.id),
                ms_predicted=None
                if gone
                else space.timing.of(site.id, option.execute, math.prod(new.shape) / math.prod(use.shape) if new is not None else 1.0),
                ms_measured=0.0 if gone else sum(after.get(n, 0.0) for n in names) if names else None,
                loss_predicted=option.loss,
            )
        decision = option.decisions[0] if option.decisions else None
        records.append(
            DecisionRecord(
                site=site.id,
                op=site.op,
                method="removed" if gone else decision.method.name if decision is not None else "keep",
                options={} if gone or decision is None else decision.method.model_dump(mode="json"),
                why=_why(site.kind, option, others, total, gone),
                before=_shape(use.shape) if use is not None else f"{site.shape[0]} channels" if site.kind == "channels" else "present",
                after="removed"
                if gone or option.dropped
                else _shape(new.shape)
                if new is not None
                else f"{option.channels} channels"
                if option.channels is not None
                else "present",
                bits=None if gone or use is None else option.format.bits if isinstance(option.format, Affine) else 32,
                rank=getattr(decision.method, "rank", None) if decision is not None and not gone else None,
                width=(site.shape[0], option.channels) if option.channels is not None else None,
                cost=cost,
                considered=tuple(f"{o.label}: loss {o.loss:.4g}" for o in others[:6]),
            )
        )
    return tuple(records)


def _stored_bytes(built: Built, name: str) -> int:
    """Bytes of a weight's parts in the artefact, or of the float weight."""
    encoded = built.stored.encoded.get(name) if built.stored is not None else None
    return encoded.format.nbytes(encoded.parts) if encoded is not None else 4 * built.program.parameter(name).numel()


def _dropped(plan: Plan) -> list[str]:
    return [d.site.removesuffix("#block") for d in plan.decisions if d.method.name == "block_drop"]


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _why(kind: str, option: Any, others: Sequence[Any], total: float, gone: bool) -> str:
    """The reason in one sentence, from the numbers that decided."""
    if gone:
        return "it lies in a block that is dropped"
    share = option.loss / total
    cheaper = [o for o in others if o.loss > option.loss]
    spent = f"it loses {option.loss:.2g} nats, {share:.0%} of what the plan loses before recovery"
    if option.dropped:
        return f"dropping the whole block removes all its time and bytes; {spent}"
    if not option.decisions:
        if not others:
            return "no method offers anything here"
        least = others[0]
        return f"everything else costs more quality than it saves: the mildest, {least.label}, loses {least.loss:.2g} nats"
    text = f"{spent}" if option.loss > 1e-6 else "it loses nothing measurable"
    if cheaper:
        text += f"; the next step, {cheaper[0].label}, would lose {cheaper[0].loss:.2g}"
    milder = [o for o in others if o.loss <= option.loss and o.decisions]
    if milder and kind != "weight":
        text += f"; a milder one, {milder[-1].label}, would save less"
    return text


def decoded(built: Built) -> Program:
    """The float program with the weights that the artefact has: trained, and rounded to what is stored."""
    program = built.program.copy()
    encoded = built.stored.encoded if built.stored is not None else {}
    with torch.no_grad():
        for name, value in program.parameters().items():
            value.copy_(encoded[name].format.decode(encoded[name].parts) if name in encoded else built.training.parameter(name))
    return program


def files_of(job: Job, found: Found, outcome: Outcome) -> dict[str, bytes]:
    """The artefact, the plan, what the plan resolved to, and the compressed model as a program that trains."""
    import io

    from safetensors.torch import save

    from slimline.core.edits import Keep

    built, plan = outcome.finalist.built, outcome.finalist.trial.plan
    tensors: dict[str, torch.Tensor] = {}
    for edit in found.workshop.structure_edits(plan.stage("structure")):
        if isinstance(edit, Keep):
            tensors[f"keep/{edit.member.parameter}/{edit.member.dim}"] = torch.tensor(edit.index, dtype=torch.int64)
    if built.stored is not None:
        for name, encode in built.stored.encoded.items():
            tensors |= {f"parts/{name}/{part}": t.contiguous() for part, t in encode.parts.items()}
    program = decoded(built)
    tensors |= {f"float/{name}": t.detach().contiguous().clone() for name, t in program.parameters().items()}
    stream = io.BytesIO()
    with quiet():
        torch.export.save(trace(program.module, job.example), stream)
    return {
        f"model{outcome.finalist.artifact.suffix}": outcome.finalist.artifact.payload,
        "plan.json": plan.model_dump_json(indent=2).encode(),
        "plan.safetensors": save(tensors),
        "program.pt2": stream.getvalue(),
    }
