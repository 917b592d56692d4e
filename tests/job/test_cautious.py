"""Where all candidates are daring, a milder one is added, so that the certificate has where to begin; where none is better than the original, that is."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from slimline.core.budget import Budget, Violation
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.job import _PythonTask, finalists
from slimline.job.cautious import SURE, add_cautious, add_original, chance_of
from slimline.job.certificate import certifiable
from slimline.job.context import Job, open_job
from slimline.job.finalists import _between, finished
from slimline.job.finishing import Finalist
from slimline.job.found import Found, of_trial, untrained_drop
from slimline.job.prepare import _temperature, prepare
from slimline.job.recovery import recover
from slimline.job.search import loss_samples, try_plan
from slimline.model.recover import evaluate
from slimline.search.space import Corrections
from slimline.search.strategies.allocate import solve


def larger(found: Found, times: float) -> None:
    """The only candidate, as if its file and its latency were so many times the original's."""
    (trial,), base = found.trials, found.baseline_measurement
    assert trial.measurement is not None
    latency = base.latency_ms.model_copy(update={"median": times * base.latency_ms.median})
    measured = trial.measurement.model_copy(update={"size_bytes": int(times * base.size_bytes), "latency_ms": latency})
    found.trials[:] = [trial.model_copy(update={"measurement": measured})]


def tried(rings: _PythonTask, out: Path, level: float) -> tuple[Job, Found]:
    """A job whose only candidate is the smallest with an estimated loss of at most ``level`` nats."""
    budget = Budget(max_drop="3%", minimize="size")
    job = open_job(rings, Request(out=out, seconds=60, methods=("weight_only",), budget=budget), Silent())
    found = prepare(job)
    samples = loss_samples(job, found)
    choice = solve(found.space, budget, level, Corrections())
    assert choice is not None
    plan = found.space.plan(choice)
    found.trials.append(try_plan(job, found, plan, "allocate", samples, evaluate(job.model, samples)))
    return job, found


def test_a_milder_candidate_is_added_until_one_is_sure_to_pass(rings: _PythonTask, tmp_path: Path) -> None:
    job, found = tried(rings, tmp_path / "build", 1.0)
    (daring,) = found.trials
    before = chance_of(job, found, daring)
    assert before is not None and before < SURE
    with job.journal:
        add_cautious(job, found)
        assert len(list(job.journal.events("trial"))) == len(found.trials) - 1
    chances = [chance_of(job, found, t) or 0.0 for t in found.trials]
    assert [t.origin for t in found.trials[1:]] == ["cautious"] * (len(found.trials) - 1)
    assert max(chances) > before and (max(chances) >= SURE or len(found.trials) == 4)


def test_where_the_holdout_can_certify_nothing_no_cautious_candidate_is_tried_and_luck_chooses_none(
    rings: _PythonTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of EfficientNet-Lite0, with 250 images, the original was delivered: it alone was sure, and beside it stood the one candidate that 125 images favoured by one."""
    job, found = tried(rings, tmp_path / "build", 1.0)
    (daring,) = found.trials
    assert certifiable(job, found) and daring.measurement is not None and daring.fidelity is not None
    base, holdout = found.baseline_measurement.quality, job.source.data("holdout")
    assert base is not None and holdout is not None
    monkeypatch.setattr(job.source, "data", lambda split: holdout[:60])
    assert not certifiable(job, found)
    lucky, same = (
        daring.model_copy(
            update={
                "plan": daring.plan.model_copy(update={"seed": seed}),
                "measurement": daring.measurement.model_copy(update={"quality": quality, "size_bytes": size}),
                "fidelity": daring.fidelity.model_copy(update={"top1": top1, "likely_top1": top1}),
                "violations": (),
            }
        )
        for seed, quality, size, top1 in ((1, base + 0.05, 1000, 0.8), (2, base, 2000, 1.0))
    )
    found.trials = [lucky, same]
    with job.journal:
        add_cautious(job, found)
    assert found.trials == [lucky, same]
    assert _between(job, found, [], set()) == [same]
    assert job.evaluation is not None and same.fidelity is not None and same.measurement is not None
    allowed = job.request.budget.max_drop.allowed(base)
    for changed, errors, chosen in ((0.01, 0.5, True), (0.01, 2.0, False), (0.5, 0.5, False)):
        drop = allowed + errors * math.sqrt(changed / len(job.evaluation))
        unlucky = same.model_copy(
            update={
                "plan": same.plan.model_copy(update={"seed": 3}),
                "measurement": same.measurement.model_copy(update={"quality": base - drop, "size_bytes": 1500}),
                "fidelity": same.fidelity.model_copy(update={"top1": 1 - changed, "likely_top1": 1 - changed}),
                "violations": (Violation(quantity="drop", value=drop, limit=allowed),),
            }
        )
        found.trials = [same, unlucky]
        assert (_between(job, found, [], set()) == [unlucky]) == chosen, (changed, errors)


def test_what_a_candidate_is_expected_to_lose_is_what_the_original_believes_where_quality_is_the_share_of_right_answers(
    rings: _PythonTask, tmp_path: Path
) -> None:
    job, found = tried(rings, tmp_path / "build", 1.0)
    (daring,) = found.trials
    assert found.temperature is not None and daring.fidelity is not None and daring.fidelity.likely_drop is not None
    mild, harmful, unknown = (
        daring.model_copy(update={"fidelity": daring.fidelity.model_copy(update={"likely_drop": times and times * daring.fidelity.likely_drop})})
        for times in (0.5, 1.5, None)
    )
    expected = [of_trial(job, found, t) for t in (mild, daring, harmful, unknown)]
    drops = [e.drop for e in expected if e is not None]
    assert drops[0] < drops[1] < drops[2] and drops[3] not in drops[:3]
    assert untrained_drop(job, found, daring) == drops[1]
    with_recovery = daring.model_copy(update={"plan": daring.plan.model_copy(update={"recovery": daring.plan.recovery.model_copy(update={"penalty": 1.0})})})
    trained = of_trial(job, found, with_recovery)
    assert trained is not None and trained.drop < drops[1]
    assert found.baseline_scores is not None
    assert _temperature(job, found.original, found.baseline_scores) == found.temperature
    assert _temperature(job, found.original, found.baseline_scores / 2) is None and _temperature(job, found.original, None) is None


def test_where_one_is_sure_already_nothing_is_added(rings: _PythonTask, tmp_path: Path) -> None:
    job, found = tried(rings, tmp_path / "build", 1e-6)
    chance = chance_of(job, found, found.trials[0])
    assert chance is not None and chance >= SURE
    with job.journal:
        add_cautious(job, found)
    assert len(found.trials) == 1


def test_where_nothing_is_better_than_the_original_it_is_a_candidate_and_loses_nothing(rings: _PythonTask, tmp_path: Path) -> None:
    job, found = tried(rings, tmp_path / "build", 1e-4)
    larger(found, 1.5)
    with job.journal:
        add_original(job, found)
        assert [t["origin"] for t in job.journal.events("trial")] == ["original"]
        add_original(job, found)  # as a resumed run would
    original = found.trials[1]
    assert len(found.trials) == 2 and original.measurement is not None
    assert not original.plan.decisions and original.measured_loss is not None
    assert original.measurement.size_bytes == found.baseline_measurement.size_bytes and abs(original.measured_loss or 0.0) < 1e-6
    assert (chance_of(job, found, original) or 0.0) >= SURE
    assert any("no candidate was better than the original in file size" in note for note in job.notes)


def test_the_original_is_not_trained(rings: _PythonTask, tmp_path: Path) -> None:
    """For PyTorch, which runs nothing in integers, ResNet-20 itself was the best candidate; 70 steps of training cost it 0.6 points, and that was delivered."""
    job, found = tried(rings, tmp_path / "build", 1e-4)
    larger(found, 1.5)
    found.schedule = found.schedule.model_copy(update={"recovery_steps": 60})
    assert job.train is not None
    with job.journal:
        add_original(job, found)
        recover(job, found, 0.0)
        assert not found.raced and not list(job.journal.events("rung"))
        delivered = next(f for f in finished(job, found) if not f.trial.plan.decisions)
    assert delivered.trial.measurement is not None and delivered.trial.measurement.quality == found.baseline_measurement.quality


def test_where_the_holdout_can_certify_nothing_what_loses_least_is_finished_first(rings: _PythonTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of EfficientNet-Lite0 for PyTorch a file that was slower than the original, and had a scatter that might have let it pass, was the only one that there was time to finish."""
    job, found = tried(rings, tmp_path / "build", 1.0)
    larger(found, 1.5)
    holdout = job.source.data("holdout")
    assert holdout is not None
    monkeypatch.setattr(job.source, "data", lambda split: holdout[:60])
    monkeypatch.setattr(finalists, "chance_of", lambda job, found, trial: 0.01 if trial.plan.decisions else 0.0)
    with job.journal:
        add_original(job, found)
        assert not finished(job, found)[0].trial.plan.decisions


def test_a_candidate_better_than_the_original_keeps_it_out(rings: _PythonTask, tmp_path: Path) -> None:
    job, found = tried(rings, tmp_path / "build", 1e-4)
    larger(found, 0.9)
    with job.journal:
        add_original(job, found)
    assert len(found.trials) == 1


def test_the_chance_of_values_comes_from_the_width_of_their_interval(rings: _PythonTask, tmp_path: Path) -> None:
    """A sentence encoder, which has no classes, got no cautious candidate at all."""
    job, found = tried(rings, tmp_path / "build", 1.0)
    (trial,), base = found.trials, found.baseline_measurement.quality
    assert trial.measurement is not None and trial.fidelity is not None and base is not None

    def chance(drop: float, width: float | None) -> float | None:
        values = trial.fidelity.model_copy(update={"top1": None})  # type: ignore[union-attr]
        quality = trial.measurement.model_copy(update={"quality": base - drop})  # type: ignore[union-attr]
        return chance_of(job, found, trial.model_copy(update={"fidelity": values, "measurement": quality, "half_width": width}))

    assert chance(0.01, None) is None
    mild, near, beyond = (chance(drop, 0.002) or 0.0 for drop in (0.01, 0.028, 0.04))
    assert mild >= SURE > near > beyond and near == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("trained", [True, False])
def test_the_space_knows_on_how_many_samples_candidates_are_judged_and_whether_they_are_trained(rings: _PythonTask, tmp_path: Path, trained: bool) -> None:
    task = SimpleNamespace(example=rings.example, data=lambda split: rings.data(split) if trained or split != "train" else None)
    job = open_job(_PythonTask(rings.model(), task), Request(out=tmp_path / "build", seconds=60, methods=("weight_only",)), Silent())  # type: ignore[arg-type]
    found = prepare(job)
    assert job.evaluation is not None and found.space.judged_on == len(job.evaluation)
    assert found.schedule.recovery_steps > 0, "without training data finalists' own"
    assert (found.space.steps > 0) == trained


@pytest.mark.parametrize("before", [0, 2])
def test_a_run_that_goes_on_after_its_time_finishes_as_many_finalists_as_were_finished_before(
    rings: _PythonTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Finalists that the killed run had finished were left out, since its time was over, and the certificate had another sequence."""
    job, found = tried(rings, tmp_path / "build", 1.0)
    (trial,) = found.trials
    others = [trial.model_copy(update={"plan": trial.plan.model_copy(update={"seed": seed})}) for seed in (1, 2)]
    monkeypatch.setattr("slimline.job.finalists.recover", lambda job, found, halfwidth: others)
    monkeypatch.setattr("slimline.job.finalists.finish", lambda job, found, trial, slack: Finalist(trial, cast(Any, None), cast(Any, None), None))
    monkeypatch.setattr("slimline.job.finalists._between", lambda job, found, raced, won: raced)
    monkeypatch.setattr("slimline.job.finalists._timed_together", lambda job, found, finalists: finalists)
    monkeypatch.setattr(job.clock, "over", lambda share=1.0: True)
    with job.journal:
        for earlier in [trial, *others][:before]:
            job.journal.append("finalist", earlier.model_dump(mode="json"), 0.0)
        done = finished(job, found)
    assert [f.trial.plan.digest for f in done] == [t.plan.digest for t in [trial, *others][: max(before, 1)]]
