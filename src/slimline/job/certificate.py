"""The certificate: which finalists are tested on the holdout, in which order, and what comes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slimline.core.result import (
    Certificate,
    DropInterval,
    Verdict,
)
from slimline.core.samples import Samples
from slimline.core.trial import Agreement, Trial
from slimline.job.context import STATE, Job, as_outputs, flat
from slimline.job.finishing import Finalist
from slimline.job.found import UNKNOWN, Expected, Found, Judged, discordance_of, half_width_of, judged_on, of_judged, timed
from slimline.job.recovery import objective
from slimline.measure.agreement import agreement
from slimline.measure.certify import best_sequence, bootstrap_interval, chance, decide, drop_interval, expected_half_width, fixed_sequence
from slimline.measure.fresh import run_fresh
from slimline.model.recover import evaluate
from slimline.search.drops import usual_loss
from slimline.store.private import private

NEAR = 3.0  # times the allowance
UNCERTIFIABLE = 0.8  # of the allowance: an interval that alone takes so much leaves no drop to be certified


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
    outputs: Any = None


def half_width(job: Job, found: Found, scores: Sequence[torch.Tensor | None]) -> float:
    """What the interval on the holdout will add to the observed drop, from how often finalists and original differ here; without ``scores``, from the candidates."""
    samples = job.source.data("holdout")
    if samples is None or found.baseline_scores is None:
        return 0.0
    known = [width for s in scores if (width := half_width_of(job, found, s)) is not None]
    if known:
        return max(known)
    base = found.baseline_measurement.quality
    assert base is not None
    near = NEAR * job.request.budget.max_drop.allowed(base)
    tried = [t for t in found.trials if t.measurement is not None and t.measurement.quality is not None and base - t.measurement.quality <= near]
    widths = [width for t in tried if (width := _expected(t, len(samples))) is not None]
    return statistics.median(widths) if widths else expected_half_width(UNKNOWN, len(samples))


def certifiable(job: Job, found: Found) -> bool:
    """Whether the holdout is large enough to certify class scores of which not one changes."""
    samples, base = job.source.data("holdout"), found.baseline_measurement.quality
    if samples is None or base is None or not job.classes:
        return True
    return expected_half_width(0.0, len(samples)) <= UNCERTIFIABLE * job.request.budget.max_drop.allowed(base)


def _expected(trial: Trial, samples: int) -> float | None:
    """Of a candidate's interval: from the share of answers that it changes, and where outputs are values from their scores."""
    changed = trial.fidelity.top1 if trial.fidelity is not None else None
    return trial.half_width if changed is None else expected_half_width(1 - changed, samples)


def order(job: Job, found: Found, finalists: Sequence[Finalist]) -> list[Finalist]:
    """The certificate's sequence, at most three, from the likeliest to pass to the best objective: that with the least expected logarithm of the objective.

    A run that goes on after the holdout was opened keeps the sequence that it was opened for.
    """
    budget, opened, by_plan = job.request.budget, job.journal.last("certified"), {f.trial.plan.digest: f for f in finalists}
    if opened is not None and all(digest in by_plan for digest in opened["sequence"]):
        return [by_plan[digest] for digest in opened["sequence"]]

    def price(finalist: Finalist) -> float:
        return objective(job, found, finalist.trial)

    kept = [f for f in finalists if not [v for v in f.trial.violations if v.quantity != "drop"]] or list(finalists)
    base = found.baseline_measurement.quality
    if base is None:
        return [min(kept, key=price)][:1]
    allowed = budget.max_drop.allowed(base)

    def margin(f: Finalist) -> float:
        """Drop to expect on the holdout, plus the half-width there."""
        return _to_expect(job, found, f, len(finalists)).drop + half_width(job, found, [f.scores])

    least = min(half_width(job, found, [f.scores]) for f in kept)
    if not certifiable(job, found) or (least > UNCERTIFIABLE * allowed and min(map(margin, kept)) > allowed):
        # The holdout is too small to certify anything: no test can choose, so fidelity does.
        close = [f for f in kept if faithful(job, found, f.trial, base, allowed)]
        return [min(close, key=price) if close else min(kept, key=margin)]
    nothing = budget.objective(found.baseline_measurement, found.baseline_measurement)
    return [kept[i] for i in best_sequence([price(f) for f in kept], [passes(job, found, f, len(finalists)) for f in kept], nothing)]


def passes(job: Job, found: Found, finalist: Finalist, rivals: int) -> float:
    """The chance that a finalist passes on the holdout, where it is one of ``rivals``."""
    expected = _to_expect(job, found, finalist, rivals)
    return chance_to_pass(job, found, expected, None if job.classes else half_width_of(job, found, finalist.scores))


def _to_expect(job: Job, found: Found, finalist: Finalist, rivals: int) -> Expected:
    """What to expect of a finalist."""
    trial, digest = finalist.trial, finalist.trial.plan.digest
    assert trial.measurement is not None
    if digest in found.small_drops:
        return Expected(found.small_drops[digest], discordance_of(job, found, finalist.scores), judged_on(job))
    raced = digest in found.recovered  # the race was decided by these very samples
    judged = Judged(trial.measurement.quality, finalist.scores, trial.fidelity)
    return of_judged(job, found, judged, rivals=rivals if raced else 1, trained=bool(found.training.get(digest)))


def chance_to_pass(job: Job, found: Found, expected: Expected, width: float | None = None) -> float:
    """On the holdout; ``width``: of graded scores, what the interval adds."""
    base, holdout = found.baseline_measurement.quality, job.source.data("holdout")
    assert base is not None
    tested = len(holdout) if holdout is not None else judged_on(job)
    return chance(*expected, tested, job.request.budget.max_drop.allowed(base), width)


def faithful(job: Job, found: Found, trial: Trial, base: float, allowed: float) -> bool:
    """Expected to stay within the allowance, by the answers that are expected to change and what candidates lose with each; and not seen to lose more than chance explains."""
    m, f = trial.measurement, trial.fidelity
    if m is None or m.quality is None:
        return False
    if f is None or f.likely_top1 is None or job.evaluation is None:
        return base - m.quality <= allowed
    per_change = usual_loss(found.trials, base, len(job.evaluation))
    changed = 1 - f.likely_top1
    return per_change * changed <= allowed and base - m.quality <= allowed + math.sqrt(changed / len(job.evaluation))


def certify(job: Job, found: Found, sequence: Sequence[Finalist]) -> Outcome:
    """Open the holdout, once: each finalist's file runs in a fresh process until the first one fails its test."""
    opened = {tuple(e["sequence"]) for e in job.journal.events("certified")}
    samples = job.source.data("holdout")
    base = found.baseline_measurement.quality
    folder = private(job.directory / STATE / "finalists")
    if samples is None or base is None:
        finalist = sequence[0]
        _, rss = _fresh(job, folder, finalist, job.longest)
        job.note("whether quality was kept: there is no data to measure it on")
        verdict: Verdict = "fail" if finalist.trial.violations else "inconclusive"
        return Outcome(finalist, verdict, None, None, None, finalist.trial.agreement, None, None, rss, None, None)
    with timed(job, "certifying on the holdout", 0.92):
        baseline_file = folder / f"baseline{found.baseline.suffix}"
        found.baseline.write(baseline_file)
        raw, baseline_rss = run_fresh(job.target, baseline_file, found.baseline.inputs, samples)
        original = as_outputs(raw, found.original)
        baseline_quality, baseline_scores = job.score(original, samples, original)
        allowed = job.request.budget.max_drop.allowed(baseline_quality)
        seen: dict[int, tuple[Any, int, float]] = {}

        def test(place: int) -> tuple[DropInterval, str]:
            outputs, rss = _fresh(job, folder, sequence[place], samples)
            shaped = as_outputs(outputs, found.original)
            quality, scores = job.score(shaped, samples, original)
            seen[place] = (shaped, rss, quality)
            if scores is not None and baseline_scores is not None:
                return drop_interval(baseline_scores, scores, allowed)
            targets = samples.targets if samples.targets is not None else original
            return bootstrap_interval(job.metric, original, shaped, targets, allowed, job.request.seed)

        source = job.source.holdout_source or "from_train"
        names = [f.trial.plan.digest for f in sequence]
        if opened == {tuple(names)}:
            job.note("the holdout was opened by an earlier part of this run with the same finalists: the same test is repeated, nothing is chosen by it again")
        elif opened:
            job.note("the holdout was opened by an earlier part of this run with other finalists, which could not be made again: the certificate counts both")
        job.journal.append("certified", {"sequence": names}, job.clock.elapsed)
        place, interval, certificate = fixed_sequence([(f.trial.plan.digest, lambda i=i: test(i)) for i, f in enumerate(sequence)], source)  # type: ignore[misc, arg-type]
    certificate = certificate.model_copy(update={"openings": len(opened | {tuple(names)})})
    finalist = sequence[place]
    shaped, rss, quality = seen[place]
    verdict = decide(interval, source)  # type: ignore[arg-type]
    if [v for v in finalist.trial.violations if v.quantity != "drop"]:
        verdict = "fail"
    if source == "from_train":
        job.note("generalisation: the holdout was taken from the training data, which the original has seen, so nothing is certified")
    fidelity = agreement(flat(shaped), flat(original), classes=job.classes)
    assert finalist.built.stored is not None
    part = samples[: min(len(samples), 500)]
    stored = evaluate_stored(finalist, part)
    close = agreement(tuple(t[: len(part)] for t in flat(shaped)), flat(stored), classes=job.classes)
    return Outcome(finalist, verdict, interval, certificate, fidelity, close, quality, baseline_quality, rss, baseline_rss, samples, original, shaped)


def evaluate_stored(finalist: Finalist, samples: Samples) -> Any:
    """Outputs of the stored form in PyTorch: what the artefact must agree with."""
    assert finalist.built.stored is not None
    return evaluate(finalist.built.stored.module, samples)


def _fresh(job: Job, folder: Path, finalist: Finalist, samples: Samples) -> tuple[tuple[torch.Tensor, ...], int]:
    file = folder / f"{finalist.trial.plan.digest}{finalist.artifact.suffix}"
    finalist.artifact.write(file)
    return run_fresh(job.target, file, finalist.artifact.inputs, samples)
