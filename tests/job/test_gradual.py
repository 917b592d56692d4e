"""A plan whose masks grow during recovery: from the dense weights, in the first training with quantizers alone, to the sparsity that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimline.core.budget import Budget
from slimline.core.plan import Decision, Plan, Recovery
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.job import _PythonTask
from slimline.job.context import open_job
from slimline.job.prepare import prepare
from slimline.job.recovery import recover
from slimline.job.search import search
from slimline.methods.unstructured import Unstructured
from slimline.model.quantizers import FakeWeight
from slimline.store.cache import fingerprint


@pytest.mark.parametrize("gradual", [True, False])
def test_masks_grow_where_the_plan_says_so(rings: _PythonTask, tmp_path: Path, gradual: bool) -> None:
    plan = Plan(
        model=fingerprint(rings.model(), {}),
        decisions=(Decision(site="2.weight", method=Unstructured(sparsity=0.9)),),
        recovery=Recovery(gradual=gradual),
    )
    request = Request(out=tmp_path / "build", seconds=60, plan=plan, budget=Budget(minimize="size", max_drop="3%"))
    job = open_job(rings, request, Silent())
    found = prepare(job)
    assert found.space.recovery.gradual is gradual
    found.schedule = found.schedule.model_copy(update={"recovery_steps": 400})
    found.space = replace(found.space, recovery=found.space.recovery.model_copy(update={"steps": 400}))
    search(job, found)
    (trial,) = recover(job, found, halfwidth=0.0)
    hows = [how for how, with_quantizers in found.training[trial.plan.digest] if with_quantizers]
    assert hows and [how.gradual for how in hows] == [gradual] + [False] * (len(hows) - 1)
    training = found.quantized[trial.plan.digest].training
    (layer,) = (m for m in training.module.modules() if isinstance(m, FakeWeight))
    assert float(layer.get_buffer("mask").float().mean()) == pytest.approx(0.1, abs=0.01)
    untrained = found.workshop.build(trial.plan)
    (before,) = (m for m in untrained.training.module.modules() if isinstance(m, FakeWeight))
    assert torch.equal(layer.get_buffer("mask"), before.get_buffer("mask")) is not gradual


def test_plans_without_it_keep_their_digests() -> None:
    assert "gradual" not in Recovery().model_dump_json()
    assert Recovery.model_validate_json(Recovery(gradual=True).model_dump_json()).gradual
