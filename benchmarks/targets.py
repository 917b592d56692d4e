"""One model in every runtime: what a plan that was found for it weighs and takes there, beside the same runtime's float32 and its own default int8.

    python benchmarks/targets.py path/to/resnet20_cifar10.py --target onnxruntime --target openvino --builds build/resnet20 --json resnet20.json
    python benchmarks/targets.py path/to/resnet20_cifar10.py --target litert --time 10m --max-drop 1% --builds build/resnet20 --json resnet20.json
    python benchmarks/targets.py path/to/resnet20_cifar10.py --json resnet20.json --table          # print what was measured before

``--builds`` holds a finished run in a folder for each target, as `slimline compress ... --target A --target B --out DIR` leaves them. With ``--time`` what is missing is made first, one run
for each target. Runtimes exclude each other's packages, so every call measures the targets it is given and adds their rows to the JSON file.

Bytes are of all files of an artefact, memory is the weights as loaded and the peak of activations, latencies are medians at batch 1 with all of a target's artefacts interleaved in one
process, and the quality is the task's metric on its holdout (the first ``--samples`` of it) from the outputs of that runtime. The default int8 is what the runtime's own quantizer makes with its first
settings, calibrated on 512 samples: ONNX Runtime's static QDQ, NNCF's for OpenVINO, ai-edge-quantizer's static recipe for LiteRT where it is installed. ``why not`` says where the compressed model is not smaller and faster than both.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slimline.core.contracts import Artifact, Quantized, Target
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.job.context import as_outputs, environment
from slimline.measure import quality
from slimline.model.program import Program
from slimline.model.recover import evaluate
from slimline.sources.task_file import TaskFile

CALIBRATION = 512
THREADS = (1, 2)
COMPRESSED, FLOAT, DEFAULT = "compressed", "float32", "default int8"


def calibration_of(task: TaskFile) -> Samples:
    """As the search draws it: of the training samples, else of the search's."""
    samples = task.data("train")
    samples = samples if samples is not None else task.data("search")
    if samples is None:
        raise SystemExit("The task has neither train nor search samples to calibrate on.")
    return samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:CALIBRATION]]


def litert_default(artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
    """ai-edge-quantizer's recipe of static int8."""
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        return
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        given = Path(folder, "float.tflite")
        given.write_bytes(artifact.payload)
        made = quantizer.Quantizer(str(given), recipe.static_wi8_ai8())
        signature = next(iter(_signatures(given)))
        feeds = [dict(zip(_signatures(given)[signature], (t[i : i + 1].numpy() for t in calibration.tensors), strict=True)) for i in range(len(calibration))]
        result = made.quantize(made.calibrate({signature: feeds}))
        yield Quantized("ai-edge-quantizer, static_wi8_ai8", replace(artifact, payload=bytes(result.quantized_model)))


def _signatures(file: Path) -> dict[str, list[str]]:
    """Signature -> names of its inputs."""
    from ai_edge_litert.interpreter import Interpreter

    return {name: list(found["inputs"]) for name, found in Interpreter(model_path=str(file)).get_signature_list().items()}


def default_int8(target: Target, baseline: Artifact, calibration: Samples) -> tuple[Artifact | None, str]:
    """The runtime's own quantizer with the first settings that it carries out, and their name; or ``None`` and the reason."""
    refused = "no quantizer of its own is installed"
    made = litert_default(baseline, calibration) if target.name == "litert" else target.plain_int8(baseline, calibration)
    for quantized in made:
        if quantized.artifact is not None:
            return quantized.artifact, quantized.label
        refused = f"{quantized.label}: {quantized.error}"
    return None, refused


def compress(task: Path, target: str, given: argparse.Namespace, folder: Path) -> None:
    """Run the command; verdicts other than `pass` leave an artefact, too."""
    budget = ["--max-drop", given.max_drop, "--minimize", given.minimize, "--time", given.time]
    subprocess.run([sys.executable, "-m", "slimline", "compress", str(task), "--target", target, *budget, "--out", str(folder), "--force"], check=False)


def build_of(builds: Path, target: Target) -> Path | None:
    """The main file of the target's finished run."""
    places = (builds / target.name / f"model{target.suffix}", builds / f"model{target.suffix}")
    return next((p for p in places if p.is_file() and _target_of(p.parent) == target.name), None)


def _target_of(folder: Path) -> str:
    report = folder / "report.json"
    return str(json.loads(report.read_text()).get("target", "")) if report.is_file() else folder.name


def rows(task: TaskFile, target: Target, build: Path, samples: int, seconds: float) -> list[dict[str, Any]]:
    """The float32, default int8 and compressed row of one target."""
    example = task.example()
    baseline = target.lower(Program.export(task.model(), example), example)
    artifacts, notes = {FLOAT: baseline}, {FLOAT: "", COMPRESSED: ""}
    default, notes[DEFAULT] = default_int8(target, baseline, calibration_of(task))
    if default is not None:
        artifacts[DEFAULT] = default
    artifacts[COMPRESSED] = target.opened(Artifact.read(target.name, build, target.beside))
    holdout = task.data("holdout")
    holdout = holdout if holdout is not None else task.data("search")
    if holdout is None:
        raise SystemExit("The task has no holdout or search samples to measure quality on.")
    holdout = holdout[:samples]
    original = evaluate(task.model(), holdout)
    targets = holdout.targets if holdout.targets is not None else original
    _, metric = quality.chosen("", task, lambda: original, holdout.targets)
    medians = {n: [la.median for la in target.latency(list(artifacts.values()), example, threads=n, seconds=seconds)] for n in THREADS}
    found = [
        {
            "target": target.name,
            "version": target.version(),
            "row": name,
            "note": notes[name],
            "size_bytes": artifact.size_bytes,
            "memory_bytes": target.memory(artifact, example),
            "latency_ms": {str(n): medians[n][place] for n in THREADS},
            "quality": quality.evaluate(metric, as_outputs(target.run(artifact, holdout, threads=2), original), targets)[0],
            "samples": len(holdout),
        }
        for place, (name, artifact) in enumerate(artifacts.items())
    ]
    if default is None:
        found.append({"target": target.name, "version": target.version(), "row": DEFAULT, "note": notes[DEFAULT]})
    return found


def why_not(found: Sequence[dict[str, Any]]) -> str:
    """Where the compressed model is not smaller and faster than the others of its target, in words; empty where it is."""
    ours = next(r for r in found if r["row"] == COMPRESSED)
    said = []
    for other in (r for r in found if r["row"] != COMPRESSED and "size_bytes" in r):
        if ours["size_bytes"] >= other["size_bytes"]:
            said.append(f"not smaller than {other['row']} ({ours['size_bytes'] / other['size_bytes']:.2f} of its bytes)")
        said += [
            f"not faster than {other['row']} at {n} thread{'s' * (n != '1')} ({ms / other['latency_ms'][n]:.2f} of its time)"
            for n, ms in ours["latency_ms"].items()
            if ms >= other["latency_ms"][n]
        ]
    return "; ".join(said)


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown, a row for each artefact."""
    yield f"| runtime | model | KB | memory, KB | ms, {' / '.join(map(str, THREADS))} threads | quality | note |"
    yield "|---|---|---|---|---|---|---|"
    for target in dict.fromkeys(r["target"] for r in found):
        own = [r for r in found if r["target"] == target]
        base = next(r for r in own if r["row"] == FLOAT)
        for row in own:
            if "size_bytes" not in row:
                yield f"| {target} {row['version']} | {row['row']} | | | | | {row['note']} |"
                continue
            size = f"{row['size_bytes'] / 1e3:,.1f}" + (f" ({base['size_bytes'] / row['size_bytes']:.2f}x smaller)" if row is not base else "")
            times = " / ".join(f"{row['latency_ms'][str(n)]:.3f}" for n in THREADS)
            faster = f" ({base['latency_ms']['1'] / row['latency_ms']['1']:.2f}x faster)" if row is not base else ""
            note = why_not(own) if row["row"] == COMPRESSED else row["note"]
            yield (
                f"| {target} {row['version']} | {row['row']} | {size} | {row['memory_bytes'] / 1e3:,.1f} | {times}{faster} | {row['quality']:.4f} | {note} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--target", action="append", default=[], help="may be repeated")
    parser.add_argument("--builds", type=Path, default=Path("build/targets"))
    parser.add_argument("--json", type=Path, default=Path("build/targets.json"))
    parser.add_argument("--time", default="", help="compress what --builds lacks, each target for so long")
    parser.add_argument("--max-drop", default="1%")
    parser.add_argument("--minimize", default="latency")
    parser.add_argument("--samples", type=int, default=10_000, help="of the holdout")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for each number of threads")
    parser.add_argument("--table", action="store_true", help="only print what --json holds")
    given = parser.parse_args()
    kept: list[dict[str, Any]] = json.loads(given.json.read_text())["rows"] if given.json.is_file() else []
    for name in () if given.table else given.target:
        kind = find("targets", name)
        try:
            kind.require()
            if build_of(given.builds, kind()) is None and given.time:
                compress(given.task, name, given, given.builds / name)
            build = build_of(given.builds, kind())
            if build is None:
                raise SystemExit(f"{given.builds} holds no finished run for {name}. Give --time to make one.")
            new = rows(TaskFile.load(str(given.task)), kind(), build, given.samples, given.seconds)
        except SlimlineError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        kept = [r for r in kept if r["target"] != name] + new
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"task": given.task.name, "environment": environment(), "rows": kept}, indent=2))
    print("\n".join(table(kept)))


if __name__ == "__main__":
    main()
