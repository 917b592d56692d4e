"""A whole compression, for two of four classes, with the network shut: data and models never leave the machine, because nothing is asked of any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from slimline.core.result import Report

TASK = """
import torch
from torch import nn


def data(split):
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(len(split)))
    return x, x[:, :4].argmax(1)


def model():
    torch.manual_seed(0)
    first, second = nn.Linear(16, 32), nn.Linear(32, 4)
    with torch.no_grad():
        first.weight.copy_(torch.eye(32, 16))
        second.weight.copy_(torch.eye(4, 32))
        first.bias.fill_(4.0)
        second.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), second).eval()
"""
# Every connection that Python's own sockets try, in the process that compresses, is refused and written down.
SHUT = """
import os, socket, sys

LOCAL = {socket.AF_UNIX}


def shut(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") or (event in ("socket.connect", "socket.bind") and args[0].family not in LOCAL):
        with open(os.environ["SHUT"], "a") as log:
            log.write(f"{event} {args[1:]}\\n")
        raise OSError(f"the network is shut: {event}")


sys.addaudithook(shut)
from slimline.cli import main

sys.exit(main(sys.argv[1:]))
"""


def namespace() -> list[str]:
    """A prefix that gives a process and its children no network at all, where this machine allows it: native code and child processes are held, too."""
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        try:
            if subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=20).returncode == 0:
                return prefix
        except OSError:
            break
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Path]:
    """The run's folder, how it ended, and the list of connections that were tried."""
    folder = tmp_path_factory.mktemp("shut")
    (folder / "task.py").write_text(TASK)
    log, out = folder / "tried", folder / "build"
    command = [*namespace(), sys.executable, "-c", SHUT, "compress", str(folder / "task.py"), "--out", str(out), "--classes", "1,3", "--time", "8s", "--minimize", "size", "--max-drop", "10%", "--quiet"]  # fmt: skip
    return (
        out,
        subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env={**os.environ, "SHUT": str(log), "OMP_NUM_THREADS": "1"}),
        log,
    )


def report_of(out: Path) -> Report:
    return Report.model_validate_json((out / "report.json").read_bytes())


def test_a_compression_needs_no_network(finished: tuple[Path, subprocess.CompletedProcess[str], Path]) -> None:
    out, done, log = finished
    assert (out / "report.json").is_file(), done.stderr
    report = report_of(out)
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report.verdict], done.stderr
    assert report.compressed is not None and report.compressed.size_bytes < report.baseline.size_bytes
    assert not log.exists(), log.read_text()


def test_journal_and_cache_are_the_users_own(finished: tuple[Path, subprocess.CompletedProcess[str], Path]) -> None:
    out, _, _ = finished
    state = [out / ".slimline", *(p for p in (out / ".slimline").rglob("*") if p.is_dir())]
    assert {p.name for p in state} >= {".slimline", "cache", "finalists"}
    assert {oct(p.stat().st_mode & 0o777) for p in state} == {"0o700"}


def test_the_report_says_what_a_plan_for_some_classes_costs_on_the_others(finished: tuple[Path, subprocess.CompletedProcess[str], Path]) -> None:
    import onnxruntime

    out, _, _ = finished
    report = report_of(out)
    names: dict[str, Any] = {}
    exec(TASK, names)
    inputs, labels = names["data"]("holdout")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    right = torch.from_numpy(scores).argmax(1) == labels
    other = (labels == 0) | (labels == 2)
    seen = report.elsewhere
    assert seen is not None and report.drop is not None and report.compressed is not None and seen.before is not None and seen.after is not None
    assert seen.classes == (1, 3) and seen.samples == int(other.sum()) and report.drop.samples == int((~other).sum())
    assert seen.after == pytest.approx(float(right[other].float().mean())) and report.compressed.quality == pytest.approx(float(right[~other].float().mean()))
    assert seen.drop == pytest.approx(seen.before - seen.after)
    assert {c.label for c in seen.worst} == {0, 2} and sum(c.samples for c in seen.worst) == seen.samples
    assert "for classes 1 and 3 alone" in report.sentence and f"{seen.samples} samples" in report.sentence
    assert "## What it costs elsewhere" in (out / "report.md").read_text() and '<h2 id="elsewhere">' in (out / "report.html").read_text()


def test_the_shut_network_is_shut(tmp_path: Path) -> None:
    """The guard of the test above does refuse."""
    log = tmp_path / "tried"
    code = SHUT.split("from slimline")[0] + "\nsocket.create_connection(('127.0.0.1', 9), 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "SHUT": str(log)})
    assert done.returncode == 1 and "the network is shut" in done.stderr and log.read_text()
    if namespace():
        code = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"  # in an empty namespace even loopback is down
        held = subprocess.run([*namespace(), sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "Network is unreachable" in held.stderr
