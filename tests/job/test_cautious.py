"""Where all candidates are daring, a milder one is added, so that the certificate has where to begin."""

from __future__ import annotations

from pathlib import Path

from slimline.core.budget import Budget
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.job import _PythonTask
from slimline.job.cautious import SURE, add_cautious, chance_of
from slimline.job.context import Job, open_job
from slimline.job.found import Found
from slimline.job.prepare import prepare
from slimline.job.search import loss_samples, try_plan
from slimline.model.recover import evaluate
from slimline.search.space import Corrections
from slimline.search.strategies.allocate import solve


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


def test_where_one_is_sure_already_nothing_is_added(rings: _PythonTask, tmp_path: Path) -> None:
    job, found = tried(rings, tmp_path / "build", 1e-4)
    chance = chance_of(job, found, found.trials[0])
    assert chance is not None and chance >= SURE
    with job.journal:
        add_cautious(job, found)
    assert len(found.trials) == 1
