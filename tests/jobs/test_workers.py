"""``--workers`` and ``--ray``: others fill the cache, and the plan is the same to the last bit; one that is killed loses nothing but its own task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slimline.core.budget import Budget
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.result import Schedule
from slimline.job.context import STATE, open_job
from slimline.sources.dispatch import open_source
from slimline.store.cache import Cache, digest_tensors
from slimline.store.journal import FILE

TASK = """
import multiprocessing
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

SIZES = {"train": 900, "search": 297, "holdout": 600}


def data(split):
    digits = load_digits()
    x = torch.as_tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    y = torch.as_tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    index = dict(zip(SIZES, order.split([*SIZES.values()])))[split]
    return x[index], y[index]


def model():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 10))
        x, y = data("train")
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(12):
            for i in torch.randperm(len(y)).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[i]), y[i]).backward()
                optimizer.step()
    return net.eval()


def loss(outputs, targets):
    journal, mark = os.environ.get("JOURNAL"), os.environ.get("DEATH")
    # Once, in a worker that trains: what options lose was measured by then.
    if mark and not Path(mark).exists() and multiprocessing.parent_process() is not None and '"kind":"shared"' in Path(journal).read_text():
        Path(mark).write_text(str(os.getpid()))
        os.kill(os.getpid(), 9)
    return nn.functional.cross_entropy(outputs, targets)
"""
SCHEDULE = {
    "schedule": Schedule(seconds=3600, samples_loss=64, candidates=8, recovery_steps=400, finalists=3).model_dump(),
    "bf16": False,
    "batch": 64,
    "forward": 1e-5,
}
METHODS = ("static_int8", "weight_only", "channel_prune")
OPTIONS = ("--max-drop", "1%", "--minimize", "size", "--time", "1h", "--methods", ",".join(METHODS), "--resume", "--quiet")


def begin(task: Path, out: Path, events: dict[str, dict[str, Any]]) -> None:
    """A run that is to be gone on with: its schedule and the times of its layers are fixed, so that no clock has a say."""
    request = Request(out=out, budget=Budget(max_drop="1%", minimize="size"), seconds=3600, methods=METHODS, model_name="task")
    job = open_job(open_source(str(task)), request, Silent())
    with job.journal:
        for kind, data in events.items():
            job.journal.append(kind, data)


def go_on(task: Path, out: Path, *options: str, **environment: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "slimline", "compress", str(task), "--out", str(out), *OPTIONS, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode in (0, 3, 4), done.stderr
    lines = (out / STATE / FILE).read_text().splitlines()
    return [json.loads(line[9:]) for line in lines]


def of_kind(journal: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line["data"] for line in journal if line["kind"] == kind]


def cached(out: Path) -> dict[str, Any]:
    """Digests of all tensors, and values (safetensors writes its header in any order)."""
    cache = Cache(out / STATE / "cache")
    entries = {name: cache.get(name) for name in cache.names()}
    assert all(entries.values())
    return {name: (digest_tensors(e[0]), e[1]) for name, e in entries.items() if e is not None}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="module")
def alone(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("alone") / "build"
    begin(task, out, {"schedule": SCHEDULE})
    return out, go_on(task, out)


def same_as_alone(alone: tuple[Path, list[dict[str, Any]]], out: Path, journal: list[dict[str, Any]]) -> None:
    """All that was measured and trained, to the last bit; what was chosen; and the artefact."""
    before, first = alone
    assert cached(out) == cached(before)
    for kind in ("rung", "schedule", "timing"):
        assert of_kind(journal, kind) == of_kind(first, kind)
    assert [t["plan"] for t in of_kind(journal, "trial")] == [t["plan"] for t in of_kind(first, "trial")]
    assert [t["plan"] for t in of_kind(journal, "finalist")] == [t["plan"] for t in of_kind(first, "finalist")]
    for file in ("plan.json", "plan.safetensors", "model.onnx"):
        assert (out / file).read_bytes() == (before / file).read_bytes(), file


def shared(journal: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Stage -> (tasks, made by workers), over the whole run."""
    found: dict[str, tuple[int, int]] = {}
    for event in of_kind(journal, "shared"):
        tasks, made = found.get(event["stage"], (0, 0))
        found[event["stage"]] = tasks + event["tasks"], made + event["made"]
    return found


@pytest.mark.timeout(900)
def test_two_workers_give_the_same_plan_even_if_one_is_killed(task: Path, alone: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """In the middle of a training: that is done again by the other, and nothing else is."""
    out, mark = tmp_path / "build", tmp_path / "death"
    begin(task, out, {"schedule": SCHEDULE, "timing": of_kind(alone[1], "timing")[0]})
    journal = go_on(task, out, "--workers", "2", JOURNAL=str(out / STATE / FILE), DEATH=str(mark))
    assert mark.exists()
    (event,) = of_kind(journal, "worker")
    assert event["task"].startswith("training candidate") and event["died"] == "signal 9 (Killed)" and event["again"] == "it is done again by another"
    done = shared(journal)
    assert done["measuring options"][0] >= 3 and done["recovering"][0] >= 2, done
    assert all(made == tasks for tasks, made in done.values()), done
    same_as_alone(alone, out, journal)
    assert {p.name for p in (out / STATE / "workers").iterdir()} == {"1.log", "2.log"}
    assert {oct(p.stat().st_mode & 0o777) for p in (out / STATE).iterdir() if p.is_dir()} == {"0o700"}


@pytest.mark.timeout(900)
def test_a_ray_cluster_gives_the_same_plan(task: Path, alone: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="slimline[ray] is not installed")
    out = tmp_path / "build"
    begin(task, out, {"schedule": SCHEDULE, "timing": of_kind(alone[1], "timing")[0]})
    journal = go_on(task, out, "--ray", "local", "--workers", "2")
    done = shared(journal)
    assert all(made == tasks for tasks, made in done.values()) and done["recovering"][0] >= 2
    same_as_alone(alone, out, journal)
