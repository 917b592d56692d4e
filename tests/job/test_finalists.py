"""Which candidates are finished: by what the certificate's sequence gains, given those that were."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from slimline.core.budget import Budget
from slimline.core.plan import Fingerprint, Plan
from slimline.core.result import Schedule
from slimline.job import finalists, finishing
from slimline.job.finalists import BETWEEN, _forgiven, _most_promising, finished
from slimline.job.finishing import LONGER, _tuning_steps, planned_tuning
from slimline.job.found import Judged
from slimline.search.race import Entry

MODEL = Fingerprint(architecture="a", weights="w")
SEEN, HOLDOUT = 5_000, 10_000


def test_what_lies_between_the_safest_and_the_winners_is_trained_sooner() -> None:
    """ResNet-20's two winners failed by 0.05 points on the holdout, and what lay before them was the safest, at twice their latency (`--time 30m`)."""
    found = cast(Any, SimpleNamespace(recovered={"winner": 0.001}))
    winner, between = (cast(Any, SimpleNamespace(plan=SimpleNamespace(digest=digest))) for digest in ("winner", "other"))
    job, without = (cast(Any, SimpleNamespace(train=train)) for train in ("samples", None))
    assert _forgiven(job, found, winner, 0.004) == 0.004
    assert _forgiven(job, found, between, 0.004) == pytest.approx(BETWEEN * 0.004)
    assert _forgiven(without, found, between, 0.004) == 0.004 and _forgiven(job, found, between, None) is None


def raced(*entries: tuple[float, int, float], holdout: int = HOLDOUT, differ: float = 0.05) -> tuple[Any, Any, list[Any]]:
    """A job that allows one point, what it found, and trials that were trained: each of a size, after so many steps with a drop. The original has 1 MB."""
    scores = torch.ones(SEEN)
    other = scores.clone()
    other[: int(differ * SEEN)] = 0
    plans = [Plan(model=MODEL, seed=i) for i in range(len(entries))]
    base = SimpleNamespace(quality=0.9, cost=lambda quantity: 1e6)
    trials = [
        SimpleNamespace(plan=plan, measurement=SimpleNamespace(cost=lambda quantity, size=size: size))
        for plan, (size, _, _) in zip(plans, entries, strict=True)
    ]
    job = SimpleNamespace(
        source=SimpleNamespace(data=lambda split: range(holdout)),
        classes=True,
        train="samples",
        evaluation=range(SEEN),
        request=SimpleNamespace(budget=Budget(max_drop="1%", minimize="size")),
    )
    found = SimpleNamespace(
        baseline_measurement=base,
        baseline_scores=scores,
        schedule=Schedule(seconds=600, samples_loss=256, candidates=20, recovery_steps=5000, finalists=3),
        raced={p.digest: Entry(p, size / 1e6, 0.03, [(steps, drop)]) for p, (size, steps, drop) in zip(plans, entries, strict=True)},
        judged={p.digest: Judged(0.9, other, None) for p in plans},
        trials=[],
        tuned=0,
    )
    return job, found, trials


SAFEST = (0.4, 0.99)
DARING, LIKELY, HARDLY_TRAINED = (0.14e6, 1200, 0.001), (0.19e6, 900, -0.002), (0.16e6, 75, 0.0081)


def test_beside_what_may_fail_the_likelier_one_is_worth_more_than_what_was_hardly_trained() -> None:
    """ResNet-20 in ten minutes: of these three the second was left out."""
    job, found, trials = raced(DARING, LIKELY, HARDLY_TRAINED)
    assert _most_promising(job, found, [SAFEST, (0.14, 0.5)], trials[1:], 1) is trials[1]


def test_beside_what_is_as_good_as_sure_a_more_daring_one_is_worth_most() -> None:
    """LeNet-5 in five minutes: the winner's runner-up was larger than it, and no surer."""
    job, found, trials = raced((0.05e6, 1100, 0.006), (0.17e6, 3600, 0.001))
    assert _most_promising(job, found, [SAFEST, (0.1, 0.97)], trials, 1) is trials[0]


def test_what_gains_nothing_is_not_finished_and_luck_chooses_none_where_the_holdout_is_small() -> None:
    job, found, trials = raced((0.3e6, 900, 0.05), (0.5e6, 900, -0.002))
    assert _most_promising(job, found, [SAFEST, (0.1, 0.99)], trials, 1) is None
    ruined = (0.05e6, 75, 0.15)
    job, found, trials = raced(LIKELY, DARING, ruined, holdout=60)
    assert _most_promising(job, found, [SAFEST], trials, 0) is trials[1], "the best objective of what is expected to keep the allowance"
    assert _most_promising(job, found, [SAFEST], trials[2:], 0) is trials[2]


@pytest.mark.parametrize(("first", "others"), [(0.99, (1,)), (0.3, (2, 1))])
def test_the_second_of_the_race_is_chosen_when_it_is_known_how_the_first_ended(monkeypatch: pytest.MonkeyPatch, first: float, others: tuple[int, ...]) -> None:
    """Beside what is all but sure a more daring one, and no third that gains nothing; beside what may fail a milder one first. Each at the price that it was tried at."""
    job, found, (safest, *trials) = raced((0.4e6, 1, 0.0), LIKELY, (0.14e6, 1200, 0.004), (0.21e6, 900, -0.003))
    found.raced.pop(safest.plan.digest)
    found.trials, found.small, found.recovered, job.workers, job.spent = [safest, *trials], [], {}, None, {}
    for trial in found.trials:
        trial.violations = ()
    job.progress, job.clock = SimpleNamespace(stage=lambda *given: None), SimpleNamespace(left=60.0, over=lambda share=1.0: False)
    job.journal = SimpleNamespace(events=lambda kind: [])
    chances = {safest.plan.digest: 0.99, trials[0].plan.digest: first}
    taken: list[Any] = []

    def finish(job: Any, found: Any, trial: Any, slack: float | None) -> Any:
        taken.append(trial)
        retimed = SimpleNamespace(cost=lambda quantity: 2 * trial.measurement.cost(quantity))
        return SimpleNamespace(trial=SimpleNamespace(plan=trial.plan, measurement=retimed, violations=()))

    for name, fake in {
        "finish": finish,
        "half_width": lambda *given: 0.003,
        "recover": lambda *given: trials,
        "tune_ahead": lambda *given: None,
        "passes": lambda job, found, finalist, rivals: chances.get(finalist.trial.plan.digest, 0.5),
        "_sure": lambda job, found, trial: chances.get(trial.plan.digest, 0.0) if trial is safest else 0.0,
        "_rank": lambda *given: (0.0, 0.0),
        "_between": lambda job, found, raced, won: [t for t in found.trials if t.plan.digest in won],
        "_timed_together": lambda job, found, finalists: finalists,
    }.items():
        monkeypatch.setattr(finalists, name, fake)
    finished(job, found)
    assert taken == [safest, trials[0], *(trials[i] for i in others)]


def tuned(
    monkeypatch: pytest.MonkeyPatch, elapsed: float, place: int = 0, kept: list[Any] | None = None, in_race: bool = True
) -> tuple[int, int, list[Any], list[float]]:
    """Steps with quantizers, how many were planned, what is in the journal, and the steps that were timed: 0.05 s each."""
    events, timed = kept if kept is not None else [], list[float]()

    def step(*given: Any) -> float:
        timed.append(0.05)
        return 0.05

    job, found, (trial,) = raced(DARING)
    if not in_race:
        found.raced.clear()
    job.journal = SimpleNamespace(events=lambda kind: events, append=lambda kind, data, at: events.append(data))
    job.clock = SimpleNamespace(seconds=600.0, elapsed=elapsed, left=600 - elapsed)
    job.progress, job.spent, job.model = SimpleNamespace(stage=lambda *given: None), {}, torch.nn.Linear(2, 2)
    job.request.seed, job.request.train_device = 0, "cpu"
    found.batch, found.bf16, found.augmentation = 128, False, None
    found.trials = [SimpleNamespace(seconds=4.0, measurement=True)]
    built = SimpleNamespace(plan=trial.plan, training=SimpleNamespace(copy=lambda: SimpleNamespace(module=None)))
    monkeypatch.setattr(finishing, "seconds_per_step", step)
    steps = _tuning_steps(cast(Any, job), cast(Any, found), cast(Any, built), place)
    return steps, planned_tuning(job, found, place), events, timed


def test_finalists_are_trained_longer_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, planned, events, _ = tuned(monkeypatch, elapsed=300)
    assert planned < steps and events == [{"place": 0, "steps": steps}]
    most, second, _, _ = tuned(monkeypatch, elapsed=60, place=1)
    assert most == LONGER * planned > LONGER * second, "more than twice what was planned for the first is not done"
    late, planned, _, _ = tuned(monkeypatch, elapsed=480)
    assert late == planned, "what is planned is done, however late it is"


def test_what_was_not_in_the_race_is_trained_as_long_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeNet-5: 52 of 300 seconds went to what stood in the sequence to pass where the winners fail."""
    steps, planned, events, timed = tuned(monkeypatch, elapsed=60, place=2, in_race=False)
    assert steps == planned and not events and not timed


def test_a_resumed_run_trains_its_finalists_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, _, events, timed = tuned(monkeypatch, elapsed=560, kept=[{"place": 0, "steps": 1500}])
    assert steps == 1500 and len(events) == 1 and not timed
