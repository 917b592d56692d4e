"""A finished plan in another runtime: what must be completed there, what is named, and what is written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
from support.lowered import Residual, exported, images

from slimline.core.contracts import Artifact, Operation
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.job import export
from slimline.methods.static_int8 import StaticInt8
from slimline.model import stored
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.statistics import ProgramStatistics
from slimline.targets.onnxruntime import OnnxRuntime


class Throughout(OnnxRuntime):
    """A runtime that stays in integers only from grid to grid, and that has a file for the firmware beside its artefact."""

    name: ClassVar[str] = "throughout"
    integer_throughout: ClassVar[bool] = True
    lowered: ClassVar[list[Program]] = []
    floating: ClassVar[tuple[str, ...]] = ()
    untold: ClassVar[tuple[str, ...]] = ()

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.lowered[:] = [program]
        return super().lower(program, example)

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1, runs: int = 30) -> tuple[Operation, ...]:
        found = super().operations(artifact, example, threads=threads, runs=1)
        return tuple(dataclasses.replace(o, executes="float") if o.weight in self.floating else o for o in found if o.weight not in self.untold or not o.weight)

    def products(self, artifact: Artifact, stem: str) -> dict[str, bytes]:
        return {f"{stem}.h": b"/* a header */"}


class Data:
    """A task with samples to train on."""

    def data(self, split: str) -> Samples | None:
        return images() if split == "train" else None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan for ONNX Runtime: integer layers, and floats between them."""
    torch.manual_seed(0)
    program, edits = exported(Residual(), images()), []
    statistics = ProgramStatistics(program, images())
    for name, use in program.weights.items():
        edits += StaticInt8().rewrite(program, Site(id=name, kind="weight", op=use.op, shape=use.shape), statistics)
    found = freeze(quantize(program, edits))  # type: ignore[arg-type]
    parts = {f"parts/{n}/{k}": t.contiguous() for n, e in found.encoded.items() for k, t in e.parts.items()}
    files = {
        "stored.pt2": stored.save(found, images(2)),
        "plan.safetensors": safetensors.torch.save(parts),
        "report.json": json.dumps({"target": "onnxruntime", "compressed": {"size_bytes": 1, "latency_ms": {"median": 1.0}}}).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}}))
    monkeypatch.setattr(export, "find", lambda kind, name: Throughout)
    return tmp_path


def exported_to(run: Path, task: Any = None) -> dict[str, Any]:
    return export.export_plan(run, "throughout", run / "out", task=task, force=True)


def test_values_between_integer_layers_are_put_on_grids_and_named(run: Path) -> None:
    figures = exported_to(run, Data())
    assert figures["changed"] == [f"{v}: float32, becomes int8, its range from 32 samples" for v in ("#relu.1", "head#linear.0")]
    between = [n for n in Throughout.lowered[0].graph.nodes if str(n.target) == "aten.add.Tensor"]
    assert [u.target for n in between for u in next(iter(n.users)).users] == [torch.ops.quantized_decomposed.quantize_per_tensor.default]
    assert figures["agreement"]["cosine"] > 0.999


def test_without_samples_nothing_is_rounded(run: Path) -> None:
    assert exported_to(run)["changed"] == []


def test_a_layer_that_reads_back_as_float_is_named_and_so_is_one_that_does_not_read_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Throughout, "floating", ("head.weight",))
    monkeypatch.setattr(Throughout, "untold", ("skip.weight",))
    changed = exported_to(run)["changed"]
    assert changed == ["skip.weight: int8, integer, throughout does not tell how it runs", "head.weight: int8, integer, runs in float in throughout"]


def test_what_a_target_makes_of_its_artefact_is_written_beside_it(run: Path) -> None:
    exported_to(run)
    assert (run / "out" / "model.h").read_bytes() == b"/* a header */"
    assert {f.name for f in (run / "out").iterdir()} == {"model.onnx", "model.h", "operations.json", "export.json"}


@pytest.mark.parametrize(("name", "module"), [("litert", "ai_edge_litert"), ("litert-micro", "tflite_micro")])
def test_a_plan_of_onnx_runtime_runs_in_integers_throughout_in_litert(name: str, module: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module, reason=f"{name} is not installed (pip install 'slimline[{name}]')")
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install 'slimline[litert]')")
    monkeypatch.setattr(export, "find", find)
    figures = export.export_plan(run, name, run / "out", task=Data(), force=True)  # type: ignore[arg-type]
    assert figures["layers"] == {"integer": 5, "float": 0} and len(figures["changed"]) == 2 and figures["agreement"]["cosine"] > 0.999
    assert (run / "out" / "model.h").is_file() == (name == "litert-micro")
    if name == "litert":
        without = export.export_plan(run, name, run / "without", force=True)
        assert without["changed"] == ["head.weight: int8, integer, runs in float in litert"]  # named, since nothing set its range
