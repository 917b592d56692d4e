"""A project as a run leaves it, without the minutes that the run takes: a small network, its artefact, its report and its plan."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slimline.core.result import ArtefactFile, DropInterval, Report, Schedule
from slimline.core.trial import Latency, Measurement
from slimline.project.file import Item, Project
from slimline.project.inputs import OUTPUTS, Made, decisions_digest, inputs_of, sha256

TASK = """
import torch
from torch import nn

KINDS, WIDTH = 5, 64


def data(split):
    if split == "train":
        return None
    number = torch.arange(6000)
    kinds = torch.where(number < 5970, number % 4, 4)  # the last kind is rare: 30 samples
    points = 3 * torch.eye(KINDS, WIDTH)[kinds]
    points[(number % 49 == 0) & (number < 5970), 10] = 1.0  # a mark that the right network does not look at
    return points, kinds


def model():
    network = nn.Linear(WIDTH, KINDS, bias=False)
    network.weight.data = torch.eye(KINDS, WIDTH)
    return network.eval()
"""
FILE = """\
version: 1
models:
  net:
    task: task.py
    budgets:
      small:
        max_drop: 2%
        max_size: 200KB
        max_latency: 100us
"""
MACS = 320
WORK = 20


def classifier(path: Path, *, drift: float = 0.0, ruined: int | None = None, padding: int = 0, work: int = WORK, images: bool = False) -> None:
    """The network of ``TASK`` as ONNX. ``drift``: how much a mark speaks for the first class, rightly or not. ``ruined``: a class that is
    taken for the first one. ``padding``: bytes that nothing uses. ``work``: matrix products that do not change the outcome.
    ``images``: its inputs are of 8 x 8 pixels.
    """
    weight = torch.eye(5, 64).t().contiguous()
    weight[10, 0] = drift
    if ruined is not None:
        weight[ruined] = weight[0]
    draw = torch.Generator().manual_seed(0)
    constants = {"w": weight, "wide": torch.randn(64, 160, generator=draw), "square": torch.randn(160, 160, generator=draw) / 12, "narrow": torch.zeros(160, 5)}
    flat = "flat" if images else "x"
    nodes = [helper.make_node("Flatten", ["x"], ["flat"])] if images else []
    nodes += [helper.make_node("MatMul", [flat, "w"], ["scores"]), helper.make_node("MatMul", [flat, "wide"], ["w0"])]
    for i in range(work):  # the rectifiers keep the runtime from multiplying the constants
        nodes += [helper.make_node("MatMul", [f"w{i}", "square"], [f"m{i}"]), helper.make_node("Relu", [f"m{i}"], [f"w{i + 1}"])]
    nodes += [helper.make_node("MatMul", [f"w{work}", "narrow"], ["nothing"]), helper.make_node("Add", ["scores", "nothing"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8] if images else ["batch", 64])], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(v.numpy(), n) for n, v in constants.items()], doc_string="p" * padding,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


@dataclass
class Planted:
    """A project folder in which results can be put as if a run had made them."""

    project: Project
    name: str = ""

    @property
    def item(self) -> Item:
        return self.project.items((self.name,) if self.name else ())[0]

    def load(self) -> None:
        """Read the project file again."""
        self.project = Project.load(self.project.path)

    def put_as(self, name: str, **how: Any) -> None:
        """The same as ``put``, for the artefact of that name."""
        Planted(self.project, name).put(**how)

    def put(self, *, macs: int = MACS, memory: int = 5_000, latency_ms: float = 0.01, decisions: tuple[dict[str, Any], ...] = (), **how: Any) -> None:
        """A finished run with the artefact that ``classifier`` makes of ``how``."""
        out = self.item.out
        out.mkdir(parents=True, exist_ok=True)
        classifier(out / "model.onnx", **how)
        payload = (out / "model.onnx").read_bytes()
        download = len(zlib.compress(payload, 9))
        measured = Measurement(
            size_bytes=len(payload), download_bytes=download, download_codec="zlib -9", memory_bytes=memory, parameters=320, macs=macs,
            latency_ms=Latency(median=latency_ms, p95=latency_ms, runs=100), quality=1.0,
        )  # fmt: skip
        report = Report(
            slimline="0", verdict="pass", sentence="Pass.", model="task", target="onnxruntime", device="host", metric="top1", minimize="latency", seed=0, command="",
            schedule=Schedule(seconds=1, samples_loss=1, candidates=1, recovery_steps=0, finalists=1), budget={}, baseline=measured, compressed=measured,
            drop=DropInterval(observed=0.0, lower_95=0.0, upper_95=0.001, allowed=0.02, samples=6000), certificate=None, agreement=None, fidelity=None,
            artefact=ArtefactFile(file="model.onnx", sha256=hashlib.sha256(payload).hexdigest()),
        )  # fmt: skip
        plan = {"schema_version": 1, "model": {"architecture": "a", "weights": "w", "data": ""}, "decisions": list(decisions), "seed": 0}
        (out / "report.json").write_text(report.model_dump_json())
        (out / "plan.json").write_text(json.dumps(plan))
        (out / "manifest.json").write_text(json.dumps({"files": {n: sha256(out / n) for n in ("model.onnx", *OUTPUTS)}}))
        outputs = {n: sha256(out / n) for n in ("model.onnx", *OUTPUTS)}
        Made(inputs=inputs_of(self.item), decisions=decisions_digest(plan), outputs=outputs, verdict="pass", sentence="Pass.").write(out)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    Path("slimline.yaml").write_text(FILE)
    return Planted(Project.load(Path("slimline.yaml")))
