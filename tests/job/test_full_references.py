"""``--references full``: references get the training that the result had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slimline.core.plan import Decision
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.trial import Latency
from slimline.job import _PythonTask
from slimline.job.context import Job, open_job
from slimline.job.found import Found
from slimline.job.full_references import recover_references
from slimline.job.prepare import prepare
from slimline.job.references import Compared, parameters_of, reference
from slimline.methods.weight_only import WeightOnly
from slimline.model.recover import Distillation

LATENCY = Latency(median=1.0, p95=1.0, runs=1, threads=1, batch=1)


@pytest.fixture(scope="module")
def job_and_found(tmp_path_factory: pytest.TempPathFactory, rings: _PythonTask) -> tuple[Job, Found]:
    torch.manual_seed(0)
    request = Request(out=tmp_path_factory.mktemp("full") / "build", seconds=20, methods=("weight_only",), references_full=True)
    job = open_job(rings, request, Silent())
    return job, prepare(job)


def outcome_of(job: Job, found: Found, digest: str) -> Any:
    holdout = job.source.data("holdout")
    assert holdout is not None
    with torch.no_grad():
        outputs = job.model(*holdout.args)
    plan = SimpleNamespace(digest=digest)
    return SimpleNamespace(finalist=SimpleNamespace(trial=SimpleNamespace(plan=plan)), samples=holdout, baseline_outputs=outputs)


def alone(found: Found, bits: int) -> Compared:
    decisions = tuple(Decision(site=f"{i}.weight", method=WeightOnly(bits=bits)) for i in (0, 2, 4))  # type: ignore[arg-type]
    plan = found.space.plan(found.space.nothing).model_copy(update={"decisions": decisions})
    built = found.workshop.build(plan)
    return Compared("weight_only alone", found.workshop.lower(built), parameters_of(built.program), built.program.macs(), plan=plan)


def test_a_reference_is_trained_as_long_as_the_result_was(job_and_found: tuple[Job, Found]) -> None:
    job, found = job_and_found
    outcome = outcome_of(job, found, "result")
    float_training = Distillation(steps=40, batch=64, seed=1)
    found.training["result"] = [(float_training, False), (Distillation(steps=110, batch=64, seed=2, learning_rate=0.005, weight_decay=0.0), True)]
    compared = [alone(found, 2), Compared("plain int8, smallest", found.baseline, 1, 1)]
    before = {c.name: reference(job, found, outcome, c, LATENCY) for c in compared}
    after = recover_references(job, found, outcome, compared, before)
    trained, untrained = after["weight_only alone"], before["weight_only alone"]
    assert trained.recovery_steps == 150 and untrained.recovery_steps == 0
    assert trained.quality is not None and untrained.quality is not None and trained.quality >= untrained.quality
    assert trained.fidelity is not None and untrained.fidelity is not None and trained.fidelity.cosine > untrained.fidelity.cosine + 0.02
    assert trained.latency_ms == untrained.latency_ms and trained.macs == untrained.macs
    assert after["plain int8, smallest"] == before["plain int8, smallest"]
    assert any("plain int8" in note for note in job.notes)


def test_where_the_result_was_not_trained_neither_are_references(job_and_found: tuple[Job, Found]) -> None:
    job, found = job_and_found
    outcome = outcome_of(job, found, "untrained")
    compared = [alone(found, 4)]
    before = {c.name: reference(job, found, outcome, c, LATENCY) for c in compared}
    assert recover_references(job, found, outcome, compared, before) == before
    assert any("not trained" in note for note in job.notes)
