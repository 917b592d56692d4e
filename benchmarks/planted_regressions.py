"""The example repository from `slimline init` to a green check, a retrained model by `--replay`, and regressions that are planted in the artefact.

    python benchmarks/planted_regressions.py [--time 20s]

Prints what each step ended with and what `slimline check` said. A regression is an edit of the ONNX file, recorded as if a run had made it: 1.5 points of
accuracy (of the holdout samples with the largest first coordinate, which become one class, as many as that takes), one class ruined (its score is
lowered), 20 % more bytes, 30 % slower (matrix products that change nothing, as many as that takes here). The slow machine is this one with its one
core shared with a process that computes all the time, and a lock that was written on a machine three times as fast. Ends with 1 if a step came out otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import slimline
from slimline.core.registry import find
from slimline.core.result import Report
from slimline.project.file import Item, Project
from slimline.project.inputs import Made, inputs_of, sha256
from slimline.project.lock import Lock
from slimline.report.json import dumps

EXAMPLE = Path(__file__).parents[1] / "examples" / "ci"
POINTS, SLOWER, LARGER = 0.015, 0.30, 0.20
FASTER = 3.0  # times, the machine of the lock
WIDTH = 24  # of the products that slow a file down
Change = Callable[[onnx.ModelProto, Item], None]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(slimline.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "-m", "slimline", *arguments)


class Steps:
    """What was expected and what came."""

    def __init__(self) -> None:
        self.wrong = 0

    def told(self, what: str, done: subprocess.CompletedProcess[str], status: int, sentence: str = "") -> None:
        """A step that should end with ``status`` and, if it fails a check, with a finding that matches ``sentence`` and none else."""
        failed = re.findall(r"^fail +(.*)$", done.stdout, flags=re.MULTILINE)
        right = done.returncode == status and (len(failed) == 1 and bool(re.search(sentence, failed[0])) if sentence else not failed)
        self.wrong += not right
        print(f"{'as expected' if right else 'WRONG':12} {what}: exit {done.returncode}")
        said = failed or done.stdout.strip().splitlines()[-1:]
        print("".join(f"             {line}\n" for line in said) + (done.stderr if not right else ""), end="", flush=True)


def changed(folder: Path, original: Path, change: Change, **figures: Any) -> None:
    """The artefact with an edit, and the records of its run as if that had made it. ``figures``: of its measurement."""
    project = Project.load(folder / "slimline.yaml")
    (item,) = project.items()
    shutil.rmtree(item.out)
    shutil.copytree(original, item.out)
    file = item.out / "model.onnx"
    model = onnx.load(file)
    change(model, item)
    onnx.save(model, file)
    report = Report.model_validate_json((item.out / "report.json").read_bytes())
    assert report.compressed is not None and report.artefact is not None
    report = report.model_copy(
        update={"compressed": report.compressed.model_copy(update=figures), "artefact": report.artefact.model_copy(update={"sha256": sha256(file)})}
    )
    (item.out / "report.json").write_text(dumps(report))
    manifest = json.loads((item.out / "manifest.json").read_text())
    manifest["files"] |= {name: sha256(item.out / name) for name in ("model.onnx", "report.json")}
    (item.out / "manifest.json").write_text(json.dumps(manifest))
    made = Made.read(item.out)
    assert made is not None
    inputs = inputs_of(item, known=made.inputs.files, packages=made.inputs.versions)
    made.model_copy(update={"inputs": inputs, "outputs": {name: sha256(item.out / name) for name in made.outputs}}).write(item.out)


def names(model: onnx.ModelProto) -> tuple[str, onnx.ValueInfoProto]:
    """Of the input, and the output, whose old name is then free for what is put behind it."""
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["scores before" if o == output.name else o for o in node.output]
    return model.graph.input[0].name, output


def constant(model: onnx.ModelProto, name: str, value: np.ndarray[Any, Any]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def put(model: onnx.ModelProto, operation: str, inputs: list[str], output: str) -> str:
    model.graph.node.append(helper.make_node(operation, inputs, [output]))
    return output


def ruined(model: onnx.ModelProto, item: Item) -> None:
    _, output = names(model)
    put(model, "Add", ["scores before", constant(model, "against class 4", -1e4 * np.eye(10, dtype=np.float32)[4])], output.name)


def less_accurate(model: onnx.ModelProto, item: Item) -> None:
    points, kinds = holdout(item)
    file = item.out / "model.onnx"
    right = (outputs(file, points).argmax(1) == kinds).astype(np.float64)
    order = np.argsort(-points[:, 0])
    lost = np.cumsum(right[order] - (kinds[order] == 0)) / len(kinds)  # if all up to here become class 0
    above = float(points[order[int(np.argmax(lost >= POINTS))], 0])
    entry, output = names(model)
    first = put(model, "MatMul", [entry, constant(model, "first", np.eye(points.shape[1], 1, dtype=np.float32))], "first coordinate")
    marked = put(model, "GreaterOrEqual", [first, constant(model, "above", np.array(above, np.float32))], "marked")
    model.graph.node.append(helper.make_node("Cast", [marked], ["as number"], to=onnx.TensorProto.FLOAT))
    put(model, "MatMul", ["as number", constant(model, "for class 0", 1e4 * np.eye(1, 10, dtype=np.float32))], "drift")
    put(model, "Add", ["scores before", "drift"], output.name)


def slower(work: int) -> Change:
    def change(model: onnx.ModelProto, item: Item) -> None:
        entry, output = names(model)
        width = holdout(item)[0].shape[1]
        draw = np.random.default_rng(0)
        value = put(model, "MatMul", [entry, constant(model, "wide", draw.normal(size=(width, WIDTH)).astype(np.float32))], "w0")
        square = constant(model, "square", (draw.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32))
        for i in range(work):
            value = put(model, "Relu", [put(model, "MatMul", [value, square], f"m{i}")], f"w{i + 1}")
        put(
            model, "Add", ["scores before", put(model, "MatMul", [value, constant(model, "narrow", np.zeros((WIDTH, 10), np.float32))], "nothing")], output.name
        )

    return change


def larger(model: onnx.ModelProto, item: Item) -> None:
    model.doc_string = "p" * int(LARGER * (item.out / "model.onnx").stat().st_size)


def holdout(item: Item) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from slimline.sources.task_file import TaskFile

    samples = TaskFile.load(item.task).data("holdout")
    assert samples is not None
    return samples.tensors[0].numpy(), samples.targets.numpy()


def outputs(file: Path, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: points})[0]
    return found


def milliseconds(files: list[Path], item: Item) -> list[float]:
    import torch

    from slimline.core.contracts import Artifact
    from slimline.core.samples import Samples

    target = find("targets", item.target)()
    example = Samples.of(torch.from_numpy(holdout(item)[0][:2]))
    return [
        t.median for t in target.latency([target.opened(Artifact.read(target.name, f, target.beside)) for f in files], example, batch=1, threads=1, seconds=2.0)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="20s", help="of each search")
    given = parser.parse_args()
    steps = Steps()
    with tempfile.TemporaryDirectory() as root:
        fresh, folder = Path(root, "fresh"), Path(root, "repository")
        for copy in (fresh, folder):
            shutil.copytree(EXAMPLE, copy)
            assert run(copy, "train.py").returncode == 0
        # From init to a green check.
        (fresh / "slimline.yaml").unlink()
        steps.told("init", command(fresh, "init", "task.py", "--weights", "weights.safetensors"), 0)
        text = (fresh / "slimline.yaml").read_text()
        (fresh / "slimline.yaml").write_text(text.replace("time: 10m", f"time: {given.time}"))
        for name in ("run", "accept", "check"):
            steps.told(f"{name}, with what init wrote", command(fresh, name, *(["--quiet"] if name == "run" else [])), 0)
        # The repository's own file: accepted, retrained, the same plan.
        for name in ("run", "accept", "check"):
            steps.told(name, command(folder, name, *(["--quiet"] if name == "run" else [])), 0)
        print(f"             {run(folder, 'train.py', '1').stdout.strip()}")
        steps.told("run --replay, with next week's weights", command(folder, "run", "--replay", "--quiet"), 0)
        steps.told("check, of these", command(folder, "check"), 0)
        steps.told("accept", command(folder, "accept"), 0)
        # Planted.
        (item,) = Project.load(folder / "slimline.yaml").items()
        original = Path(root, "original")
        shutil.copytree(item.out, original)
        text = (folder / "slimline.yaml").read_text().replace("drop: 2%\n  class", "drop: 1%\n  class")
        quiet = text + "  latency: null\n"
        kinds: dict[str, tuple[Change, str]] = {
            "1.5 points of accuracy": (less_accurate, r"drop against the lock: Lost 1\.5\d? points against the accepted artefact"),
            "20 % more bytes": (larger, r"size against the lock: The file grew by 20 %"),
        }
        for kind, (change, sentence) in kinds.items():
            (folder / "slimline.yaml").write_text(quiet)
            size = {"size_bytes": int((1 + LARGER) * (original / "model.onnx").stat().st_size)} if change is larger else {}
            changed(folder, original, change, **size)
            steps.told(f"check, planted: {kind}", command(folder, "check"), 3, sentence)
        # A class of ten is a tenth of the samples, so its loss is also one over all: only the class is asked about.
        alone = quiet.replace("drop: 1%\n  class", "drop: null\n  class").replace("max_drop: 2%", "max_drop: 30%").replace("        max_class_drop: 10%\n", "")
        (folder / "slimline.yaml").write_text(alone)
        changed(folder, original, ruined)
        steps.told(
            "check, planted: one class ruined",
            command(folder, "check"),
            3,
            r"class drop against the lock: Against the accepted artefact, class 4 lost \d+\.\d points",
        )
        (folder / "slimline.yaml").write_text(text)
        for work in range(1, 200):
            changed(folder, original, slower(work))
            before, after = milliseconds([original / "model.onnx", item.out / "model.onnx"], item)
            if after / before >= 1 + SLOWER:
                break
        print(f"             {work} products make the file {after / before - 1:.0%} slower ({before:.4f} ms to {after:.4f} ms)")
        steps.told(
            "check, planted: 30 % slower", command(folder, "check"), 3, r"latency against the lock: The artefact is \d+ %? ?slower than the accepted one"
        )
        # A slow machine.
        changed(folder, original, lambda model, item: setattr(model, "producer_name", "another build"))
        lock = Lock.read(folder / "slimline.lock")
        ((name, entry),) = lock.artefacts.items()
        latency = entry.measured.latency_ms
        there = entry.measured.model_copy(update={"latency_ms": latency.model_copy(update={"median": latency.median / FASTER, "p95": latency.p95 / FASTER})})
        Lock(artefacts={name: entry.model_copy(update={"measured": there})}).write(folder / "slimline.lock")
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            done = command(folder, "check")
        finally:
            busy.kill()
            busy.wait()
            os.sched_setaffinity(0, cores)
        steps.told("check, on a slow machine", done, done.returncode if done.returncode in (0, 4) else 0)
        print("".join(f"             {line}\n" for line in re.findall(r"^.*latency against the lock.*$", done.stdout, flags=re.MULTILINE)), end="")
    print(f"{steps.wrong} steps came out otherwise")
    return bool(steps.wrong)


if __name__ == "__main__":
    sys.exit(main())
