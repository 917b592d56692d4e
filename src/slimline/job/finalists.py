"""Which candidates are finished: the safest first, then what the certificate's sequence is expected to gain the most by, given those that were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slimline.core.trial import Trial
from slimline.errors import BudgetNotMet, SlimlineError
from slimline.job.cautious import SURE, chance_of
from slimline.job.certificate import certifiable, chance_to_pass, faithful, half_width, passes
from slimline.job.context import Job
from slimline.job.finishing import Finalist, finish, planned_tuning, tune_ahead
from slimline.job.found import TRIAL_SECONDS, Expected, Found, half_width_of, judged_on, of_judged, paired_latencies, timed
from slimline.job.recovery import for_archive, objective, recover
from slimline.job.small_archive import train_for_archive
from slimline.measure.certify import shrunk
from slimline.report.sentence import number_of
from slimline.search.race import bottom_of, worth

WINNERS = 2  # of the race that are finished, and a third where that is worth more than what was not in the race
LEAST_GAIN = 1e-6  # in the logarithm of the price, for which one more is worth finishing
LEAST_CHANCE = 1e-3  # of the likeliest: below it chances tell nothing
BETWEEN = 0.25  # of the drop that the holdout is expected to forgive, up to which a finalist that was not in the race is not trained, unless it is the safest


Prospect = tuple[float, float]  # a price (the objective), and the chance to pass on the holdout


def finished(job: Job, found: Found) -> list[Finalist]:
    """The best of the measured trials that are as good as sure to pass (or come nearest to it), those of the race that are worth most beside it, and what lies between, finished.

    Raises:
        SlimlineError: no candidate could be built.
    """
    base = found.baseline_measurement.quality
    halfwidth = half_width(job, found, [])
    raced = recover(job, found, halfwidth)
    if for_archive(job, found):
        train_for_archive(job, found, halfwidth)
    tried = [t for t in found.trials if t.measurement is not None]
    if not tried:
        raise _nothing_worked(found.trials)
    safest = min(tried, key=lambda t: (bool([v for v in t.violations if v.quantity != "drop"]), -_sure(job, found, t), *_rank(job, found, t)))
    slack = None if base is None or not found.schedule.recovery_steps else max(job.request.budget.max_drop.allowed(base) - halfwidth, 0.0)
    earlier = {Trial.model_validate(t).plan.digest for t in job.journal.events("finalist")}  # a resumed run must choose between the same ones
    done: list[tuple[Trial, Finalist]] = []
    taken: set[str] = set()
    late: set[str] = set()

    def take(trials: Sequence[Trial]) -> None:
        """Finish those that were not, as long as there is time."""
        for trial in trials:
            if trial.plan.digest in taken:
                continue
            taken.add(trial.plan.digest)
            if done and job.clock.over(1.0) and trial.plan.digest not in earlier:
                late.add(trial.plan.digest)
                continue
            try:
                with timed(job, "finishing the best", 0.86):
                    done.append((trial, finish(job, found, trial, slack if trial is safest else _forgiven(job, found, trial, slack))))
            except SlimlineError as error:
                job.note(f"a finalist failed: {error.message[:200]}")

    foreseen = _foreseen(job, found, safest, raced)
    ahead = {t.plan.digest: t for t in [safest, *found.small, *foreseen, *_between(job, found, raced, {t.plan.digest for t in foreseen})]}.values()
    tune_ahead(job, found, [(t, slack if t is safest else _forgiven(job, found, t, slack)) for t in ahead])
    take([safest, *found.small])
    won = {safest.plan.digest} & found.raced.keys()

    def choose(others: Sequence[Trial] = ()) -> Trial | None:
        known = [_known(job, found, trial, finalist, len(done)) for trial, finalist in done]
        pool = [t for t in [*raced, *others] if t.plan.digest not in taken]
        return _most_promising(job, found, known, list({t.plan.digest: t for t in pool}.values()), found.tuned)

    while found.raced and len(won) < WINNERS and (best := choose()) is not None:
        won.add(best.plan.digest)
        take([best])
    between = _between(job, found, raced, won)
    last = choose(between) if found.raced and certifiable(job, found) else None
    take(between if last is None else [last])
    if late:
        job.cut(f"{number_of(len(late), 'finalist')}: no time was left for finishing more")
    if not done:
        raise _nothing_worked(found.trials)
    return _timed_together(job, found, [finalist for _, finalist in done])


def _known(job: Job, found: Found, trial: Trial, finalist: Finalist, rivals: int) -> Prospect:
    """Of a finished one. Its price is that of the trial, as theirs are that it is compared with: timed minutes later, at another speed of the machine, it may seem another,
    and a run that goes on would choose otherwise."""
    broken = [v for v in finalist.trial.violations if v.quantity != "drop"]
    return objective(job, found, trial), 0.0 if broken else passes(job, found, finalist, rivals)


def _most_promising(job: Job, found: Found, known: Sequence[Prospect], pool: Sequence[Trial], place: int) -> Trial | None:
    """Of the race's trials that by which the certificate's sequence gains the most beside ``known``, if it is the ``place``-th to be trained with its quantizers; ``None`` if it
    gains by none. Where the holdout can certify nothing, the best objective that is expected to keep the allowance, or what is expected to lose the least.

    Beside what will hardly pass that is a milder one, beside what is as good as sure to pass a more daring one. On ResNet-20 a runner-up of 191 KB that had gained 0.2 points was left out for
    one that was milder before training, and hardly trained; on LeNet-5 the winner's runner-up was larger than it.
    """
    base, steps = found.baseline_measurement, planned_tuning(job, found, place)
    prospects = [_prospect(job, found, t, len(known) + 1, steps) for t in pool]
    if not certifiable(job, found) or max((chance for _, chance in [*known, *prospects]), default=0.0) < LEAST_CHANCE:
        assert base.quality is not None
        allowed = job.request.budget.max_drop.allowed(base.quality)
        kept = [t for t in pool if _drop_then(found, t, steps) <= allowed]
        return min(kept, key=lambda t: objective(job, found, t)) if kept else min(pool, key=lambda t: _drop_then(found, t, steps), default=None)
    nothing = job.request.budget.objective(base, base)
    gains = [(worth([*known, prospect], nothing) - worth(known, nothing), t) for prospect, t in zip(prospects, pool, strict=True)]
    gain, best = max(gains, key=lambda g: g[0], default=(0.0, None))
    return best if gain > LEAST_GAIN else None


def _drop_then(found: Found, trial: Trial, steps: int) -> float:
    """The drop to expect of what was trained in the race, after so many ``steps`` more, or before all training where that is better; of others that of the trial."""
    entry, base = found.raced.get(trial.plan.digest), found.baseline_measurement.quality
    if entry is None:
        assert base is not None and trial.measurement is not None and trial.measurement.quality is not None
        return base - trial.measurement.quality
    return min(entry.untrained, entry.expected(entry.steps + steps, bottom_of(found.raced.values())))


def _prospect(job: Job, found: Found, trial: Trial, rivals: int, steps: int) -> Prospect:
    """Of what was trained in the race, after so many ``steps`` more; of others as they are."""
    if trial.plan.digest not in found.raced:
        return objective(job, found, trial), chance_of(job, found, trial) or 0.0
    judged = found.judged[trial.plan.digest]
    _, discordance, known = of_judged(job, found, judged)
    drop = shrunk(_drop_then(found, trial, steps), discordance, judged_on(job), rivals)
    width = None if job.classes else half_width_of(job, found, judged.scores)
    return objective(job, found, trial), chance_to_pass(job, found, Expected(drop, discordance, known), width)


def _foreseen(job: Job, found: Found, safest: Trial, raced: Sequence[Trial]) -> list[Trial]:
    """Those of the race that will be finished, if all ends as it is expected: workers train them meanwhile."""
    if not found.raced or job.workers is None:
        return []
    known, chosen = [(objective(job, found, safest), _sure(job, found, safest))], list[Trial]()
    for place in range(WINNERS - (safest.plan.digest in found.raced)):
        pool = [t for t in raced if t is not safest and t not in chosen]
        best = _most_promising(job, found, known, pool, found.tuned + place)
        if best is not None:
            chosen.append(best)
            known.append(_prospect(job, found, best, len(known) + 1, planned_tuning(job, found, found.tuned + place)))
    return chosen


def _forgiven(job: Job, found: Found, trial: Trial, slack: float | None) -> float | None:
    """The drop that a finalist beside the safest may have before it is trained: of one that was not in the race little, since it is there to pass where the winners fail."""
    return slack if slack is None or job.train is None or trial.plan.digest in found.recovered else BETWEEN * slack


def _timed_together(job: Job, found: Found, finalists: list[Finalist]) -> list[Finalist]:
    """With latencies of one round. They were finished minutes apart, and what slows a shared machine slows float and integer kernels unequally: ResNet-20's best finalist,
    timed at a bad moment, seemed half as slow again as another and was left out of the certificate's sequence."""
    if len(finalists) < 2:
        return finalists
    budget, base, again = job.request.budget, found.baseline_measurement, []
    for finalist, latency in zip(finalists, paired_latencies(job, found, [f.artifact for f in finalists], 2 * TRIAL_SECONDS), strict=True):
        assert finalist.trial.measurement is not None
        measured = finalist.trial.measurement.model_copy(update={"latency_ms": latency})
        violations = budget.violations(measured, base)
        status = "missed" if violations else "met"
        again.append(replace(finalist, trial=finalist.trial.model_copy(update={"measurement": measured, "violations": violations, "status": status})))
    return again


def _rank(job: Job, found: Found, trial: Trial) -> tuple[float, float]:
    """Of candidates with the same chance: of those that are all but sure to pass the best objective, else the least loss."""
    loss = trial.measured_loss or 0.0
    return (objective(job, found, trial), loss) if _sure(job, found, trial) >= SURE else (loss, 0.0)


def _sure(job: Job, found: Found, trial: Trial) -> float:
    """Chance to pass as it is, as far as it tells candidates apart: not where the holdout can certify nothing. There it is what is left of a daring one's scatter, and the original has none."""
    return min(chance_of(job, found, trial) or 0.0, SURE) if certifiable(job, found) else 0.0


def _between(job: Job, found: Found, raced: Sequence[Trial], won: set[str]) -> list[Trial]:
    """What is not among those ``won`` in the race: the best objective that keeps the allowance untrained."""
    base = found.baseline_measurement.quality
    if base is None:
        return list(raced[: found.schedule.finalists])
    allowed = job.request.budget.max_drop.allowed(base)
    certain = certifiable(job, found)  # else by luck one of few samples is answered better, or worse
    others = [t for t in found.trials if t.measurement is not None and t.plan.digest not in won]
    untrained = [t for t in others if not [v for v in t.violations if certain or v.quantity != "drop"]]
    close = half_width(job, found, [])

    def keeps(trial: Trial) -> bool:
        return trial.measurement is not None and trial.measurement.quality is not None and base - trial.measurement.quality <= allowed - close

    sure = [t for t in untrained if keeps(t)] if certain else []
    ranked = sorted(sure or [t for t in untrained if faithful(job, found, t, base, allowed)], key=lambda t: objective(job, found, t))
    return ranked[: max(1, found.schedule.finalists - len(won))]


def _nothing_worked(trials: list[Trial]) -> SlimlineError:
    said = next((t.error for t in trials if t.error), "no candidate met the limits on paper")
    return BudgetNotMet(f"No candidate could be built: {said.rstrip('.')}.", hint="Loosen the budget, or allow more methods (slimline methods).")
