"""What a runtime really runs is read back from the lowered graph: a layer that ends up in float although the plan says int8 fails the trial."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn

from slimline.core.budget import Budget
from slimline.core.contracts import Artifact, Operation
from slimline.core.plan import Decision, Plan
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.job.found import verify_execution
from slimline.job.search import try_plan
from slimline.methods.static_int8 import StaticInt8
from slimline.model.sites import find_sites
from slimline.search.workshop import Workshop
from slimline.targets.onnxruntime import OnnxRuntime


class Otherwise(OnnxRuntime):
    """A runtime that takes int8 layers and runs some of them otherwise than it was told."""

    runs: ClassVar[dict[str, str]] = {}

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1, runs: int = 30) -> tuple[Operation, ...]:
        found = super().operations(artifact, example, threads=threads, runs=1)
        return tuple(dataclasses.replace(o, executes=self.runs.get(o.weight, o.executes)) for o in found if self.runs.get(o.weight) != "untold")


@pytest.fixture(scope="module")
def given() -> tuple[Any, Any]:
    """A job for that runtime, and its workshop."""
    torch.manual_seed(0)
    samples = Samples.of(torch.randn(64, 12))
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    workshop = Workshop(model, samples[:2], samples, tuple(find_sites(model, samples[:2])[0]), Otherwise())
    notes: list[str] = []
    job = SimpleNamespace(
        target=workshop.target,
        example=samples[:2],
        usual=samples[:2],
        longest=samples[:2],
        request=SimpleNamespace(budget=Budget()),
        note=notes.append,
        notes=notes,
    )
    return job, workshop


def int8(workshop: Workshop, *layers: str) -> Plan:
    return workshop.plan(tuple(Decision(site=f"{name}.weight", method=StaticInt8()) for name in layers))


def test_a_candidate_with_a_float_layer_that_was_to_be_int8_is_a_failed_trial(given: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    job, workshop = given
    monkeypatch.setattr(Otherwise, "runs", {"2.weight": "float"})
    found = SimpleNamespace(workshop=workshop, space=SimpleNamespace(choice=lambda plan: None))
    trial = try_plan(job, cast(Any, found), int8(workshop, "0", "2", "4"), "test", job.example, None)
    assert trial.status == "failed" and trial.measurement is None
    assert trial.error == "onnxruntime runs 2.weight in float although the plan says integer."


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"0.weight": "float", "2.weight": "float"}, "runs 0.weight, 2.weight in float although the plan says integer"),
        ({"4.weight": "integer"}, "runs 4.weight in integers although the plan says float"),
    ],
)
def test_a_finalist_that_runs_otherwise_is_refused_with_its_layers(
    runs: dict[str, str], said: str, given: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, workshop = given
    monkeypatch.setattr(Otherwise, "runs", runs)
    built = workshop.build(int8(workshop, "0", "2"))
    artifact = workshop.lower(built)
    with pytest.raises(SlimlineError, match=said):
        verify_execution(job, built, artifact)


def test_what_cannot_be_read_back_is_noted(given: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    job, workshop = given
    monkeypatch.setattr(Otherwise, "runs", {"2.weight": "untold"})
    built = workshop.build(int8(workshop, "0", "2"))
    assert {o.weight for o in verify_execution(job, built, workshop.lower(built)) if o.executes == "integer" and o.weight} == {"0.weight"}
    assert job.notes == ["whether 2.weight run in integers could not be read back from onnxruntime"]
