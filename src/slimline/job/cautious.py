"""Candidates that no strategy proposes: one that all but surely passes, with which the certificate's sequence begins, so that daring ones cost no verdict; and the original, where nothing is better."""

from __future__ import annotations

from slimline.core.trial import Trial
from slimline.job.certificate import certifiable, chance_to_pass
from slimline.job.context import Job
from slimline.job.found import Expected, Found, of_trial, timed
from slimline.job.recovery import objective
from slimline.job.search import CAUTIOUS, ORIGINAL, loss_samples, original_answers, try_plan
from slimline.measure.certify import Z
from slimline.report.sentence import MINIMISED
from slimline.search.strategies.allocate import corrections_from, counted, least_level, solve

SURE = 0.98  # chance to pass on the holdout, below which a milder candidate is looked for
SHARES = (0.2, 0.04, 0.008)  # of the mildest candidate's loss, that a milder one may have
LATEST = 0.85  # of the time


def chance_of(job: Job, found: Found, trial: Trial) -> float | None:
    """Chance that an untrained candidate passes on the holdout, taking every changed answer for a changed score; of values from the width of their interval. ``None`` where there is neither."""
    base, m, width = found.baseline_measurement.quality, trial.measurement, trial.half_width
    holdout = job.source.data("holdout")
    if base is None or holdout is None or job.evaluation is None or m is None or m.quality is None:
        return None
    expected = of_trial(job, found, trial)
    if expected is not None:
        return chance_to_pass(job, found, expected)
    return None if width is None else chance_to_pass(job, found, Expected(base - m.quality, (width / Z) ** 2 * len(holdout), len(job.evaluation)), width)


def add_cautious(job: Job, found: Found) -> None:
    """Where no candidate is ``SURE`` to pass, milder ones are tried until one is; none where the holdout can certify nothing.

    On LeNet-5 (0.3 points allowed) estimates were 150 times too low, and the mildest of eight candidates, 26 times smaller than the original, lost 0.23 points
    on the holdout after 0.02 on the search samples.
    """
    if job.request.plan is not None or not certifiable(job, found):
        return
    samples, reference = loss_samples(job, found), None
    for share in SHARES:
        known = [(c, t) for t in found.trials if (c := chance_of(job, found, t)) is not None and not [v for v in t.violations if v.quantity != "drop"]]
        if not known or max(c for c, _ in known) >= SURE:
            return
        if job.clock.over(LATEST):
            job.cut("a candidate that is sure to pass: no time was left to look for one")
            return
        corrections = counted(found.space, corrections_from(found.space, found.trials))
        choices = [choice for _, t in known if (choice := found.space.choice(t.plan)) is not None]
        if not choices:
            return
        mildest = min(found.space.loss(choice, corrections) for choice in choices)
        choice = solve(found.space, job.request.budget, share * mildest, corrections) if mildest > 0 else None  # nothing is milder than what loses nothing
        if choice is None and (level := least_level(found.space, job.request.budget, corrections)) < mildest:
            choice = solve(found.space, job.request.budget, level, corrections)  # nothing is that mild within the limits
        if choice is None:
            return
        plan = found.space.plan(choice)
        if plan.digest in {t.plan.digest for t in found.trials}:
            continue
        with timed(job, "trying a cautious candidate", 0.4):
            reference = original_answers(job, found, samples) if reference is None else reference
            trial = try_plan(job, found, plan, CAUTIOUS, samples, reference)
        found.trials.append(trial)
        job.journal.append("trial", trial.model_dump(mode="json"), job.clock.elapsed)


def add_original(job: Job, found: Found) -> None:
    """Where no candidate that keeps the limits is better than the original in what is minimised, the original is one: a network of a few microseconds is slower in integers."""
    budget, base = job.request.budget, found.baseline_measurement
    measured = [t for t in found.trials if t.measurement is not None and t.origin != ORIGINAL]
    if job.request.plan is not None or budget.violations(base) or not measured or getattr(job.target, "integer_only", False):
        return
    known = [t for t in measured if not [v for v in t.violations if v.quantity != "drop"]]
    if any(objective(job, found, t) < budget.objective(base, base) for t in known):
        return
    job.note(f"compression: no candidate was better than the original in {MINIMISED[budget.minimize]}, so that was made a candidate, too")
    plan = found.space.plan(found.space.nothing)
    if plan.digest in {t.plan.digest for t in found.trials}:
        return
    samples = loss_samples(job, found)
    with timed(job, "trying the original", 0.4):
        trial = try_plan(job, found, plan, ORIGINAL, samples, original_answers(job, found, samples))
    found.trials.append(trial)
    job.journal.append("trial", trial.model_dump(mode="json"), job.clock.elapsed)
