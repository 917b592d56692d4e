"""One model in every runtime: what a plan that was found for it weighs and takes there, beside the same runtime's float32 and its own default int8.

    python benchmarks/targets.py path/to/resnet20_cifar10.py --time 4m --builds build/resnet20 --json resnet20.json
    python benchmarks/targets.py path/to/resnet20_cifar10.py --target litert --again --builds build/resnet20 --json resnet20.json
    python benchmarks/targets.py path/to/resnet20_cifar10.py --json resnet20.json --table          # print what was measured before

``--builds`` holds a finished run in a folder for each target, as `slimline compress ... --target A --target B --out DIR` leaves them. With ``--time`` what is missing is made first, one run
for each target. Runtimes exclude each other's packages, and a run may be stopped: what is finished stays in the JSON file, and a call goes on with what is not there (``--again``: measures it anew). A target that is not
installed, and one that stops, has a row that says so.

Bytes are of all files of an artefact, memory is the weights as loaded and the peak of activations, latencies are medians at batch 1 with all of a target's artefacts interleaved in one
process, and the quality is the task's metric on its holdout (as many of its first samples as the slowest artefact gets through in ``--quality-seconds``) from the outputs of that runtime.
The default int8 is what the runtime's own quantizer makes with its first settings, calibrated on up to 512 samples: ONNX Runtime's static QDQ, NNCF's for OpenVINO, ai-edge-quantizer's for LiteRT (and, with its
constants brought in line, for the micro interpreter), XNNPACKQuantizer's for ExecuTorch. The verdict says where the compressed model is not smaller and faster than both, with what the build's report and the artefact's
operations tell about it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slimline.core.contracts import Artifact, Operation, Quantized, Target
from slimline.core.formats import Affine
from slimline.core.registry import find, registered
from slimline.core.result import Report
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.job.context import as_outputs, environment
from slimline.measure import quality
from slimline.model.program import Program
from slimline.model.recover import evaluate
from slimline.sources.task_file import TaskFile

CALIBRATION = 512
CALIBRATION_SECONDS = 120.0  # for XNNPACKQuantizer, whose histograms take seconds a sample on larger models
THREADS = (1, 2)
FEWEST = 50  # samples on which a quality is measured, however slow the runtime is
COMPRESSED, FLOAT, DEFAULT = "compressed", "float32", "default int8"
Row = dict[str, Any]


def calibration_of(task: TaskFile) -> Samples:
    """As the search draws it: of the training samples, else of the search's."""
    samples = task.data("train")
    samples = samples if samples is not None else task.data("search")
    if samples is None:
        raise SystemExit("The task has neither train nor search samples to calibrate on.")
    return samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:CALIBRATION]]


def executorch_default(task: TaskFile, calibration: Samples) -> Iterator[Quantized]:
    """PyTorch's PT2E flow with the quantizer that ExecuTorch ships for XNNPACK, per channel; as many calibration samples as fit."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from slimline.targets._executorch_file import File

    example = task.example()
    dims: Any = [{0: torch.export.Dim("batch", min=1, max=16)} for _ in example.args]

    def exported(module: torch.nn.Module) -> torch.export.ExportedProgram:
        return torch.export.export(module, example.args, dict(example.kwargs), dynamic_shapes=dims)

    prepared = prepare_pt2e(
        exported(task.model()).module(), XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    )
    used, end = 0, time.monotonic() + CALIBRATION_SECONDS
    for few in calibration.batches(8):
        prepared(*few.args, **few.kwargs)
        used += len(few)
        if time.monotonic() > end:
            break
    edge = to_edge_transform_and_lower(
        exported(convert_pt2e(prepared)), partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    )
    file = File.of(bytes(edge.to_executorch().buffer))  # packed as ours are: its constants in line, its metadata gone
    yield Quantized(f"XNNPACKQuantizer, per channel, {used} calibration samples", Artifact("executorch", ".pte", file.pack(), (), ()))


def default_int8(target: Target, task: TaskFile, baseline: Artifact) -> tuple[Artifact | None, str]:
    """The runtime's own quantizer with the first settings that it carries out, and their name; or ``None`` and the reason."""
    calibration, refused = calibration_of(task), f"no quantizer of {target.name}'s own is installed"
    maker = find("targets", "litert")() if target.name == "litert-micro" else target
    try:
        for quantized in executorch_default(task, calibration) if target.name == "executorch" else maker.plain_int8(baseline, calibration):
            if quantized.artifact is not None:
                return target.opened(replace(quantized.artifact, target=target.name)), quantized.label
            refused = f"{quantized.label}: {quantized.error}"
    except Exception as error:  # noqa: BLE001 - quantizers raise anything; it becomes the row's reason
        refused = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    return None, refused


def compress(task: Path, target: str, given: argparse.Namespace, folder: Path) -> None:
    """Run the command; verdicts other than `pass` leave an artefact, too."""
    budget = ["--max-drop", given.max_drop, "--minimize", given.minimize, "--time", given.time]
    subprocess.run([sys.executable, "-m", "slimline", "compress", str(task), "--target", target, *budget, "--out", str(folder), "--force"], check=False)


def build_of(builds: Path, target: Target) -> Path | None:
    """The main file of the target's finished run."""
    places = (builds / target.name / f"model{target.suffix}", builds / f"model{target.suffix}")
    return next((p for p in places if p.is_file() and (r := report_of(p)) is not None and r.target == target.name), None)


def report_of(build: Path) -> Report | None:
    """What the run that made an artefact found."""
    file = build.with_name("report.json")
    return Report.model_validate_json(file.read_text()) if file.is_file() else None


def layers(target: Target, artifact: Artifact, example: Samples) -> list[Operation]:
    """The operations that take weights, as the runtime executes them."""
    read = target.untimed(artifact) if hasattr(target, "untimed") else target.operations(artifact, example)
    return [o for o in read if o.weight]


def measured(path: str, name: str, build: Path, seconds: float, most: int, quality_seconds: float) -> dict[str, Any]:
    """One target's float32, default int8 and compressed row, and the verdict over them."""
    task, target = TaskFile.load(path), find("targets", name)()
    example = task.example()
    program = Program.export(task.model(), example)
    baseline = target.lower(program, example)
    artifacts, notes = {FLOAT: baseline}, {FLOAT: ""}
    default, notes[DEFAULT] = default_int8(target, task, baseline)
    if default is not None:
        artifacts[DEFAULT] = default
    artifacts[COMPRESSED] = target.opened(Artifact.read(name, build, target.beside))
    found = (
        target.latency(list(artifacts.values()), example, threads=1, seconds=seconds),
        target.latency(list(artifacts.values()), example, threads=2, seconds=seconds),
    )
    holdout = task.data("holdout")
    holdout = holdout if holdout is not None else task.data("search")
    if holdout is None:
        raise SystemExit("The task has no holdout or search samples to measure quality on.")
    holdout = holdout[: max(FEWEST, min(most, int(1e3 * quality_seconds / max(la.median for la in found[0]))))]
    original = evaluate(task.model(), holdout)
    targets = holdout.targets if holdout.targets is not None else original
    _, metric = quality.chosen("", task, lambda: original, holdout.targets)
    report = report_of(build)
    assert report is not None  # as build_of found it
    notes[COMPRESSED] = f"{report.verdict}: {report.slimline}, --time {report.schedule.seconds:.0f}s"
    rows = [
        {
            "row": row,
            "note": notes[row],
            "size_bytes": artifact.size_bytes,
            "memory_bytes": target.memory(artifact, example),
            # A runtime that does not take so many threads says how many it had.
            "latency_ms": {str(n): column[place].median for n, column in zip(THREADS, found, strict=True) if column[place].threads == n},
            "quality": quality.evaluate(metric, as_outputs(target.run(artifact, holdout, threads=2), original), targets)[0],
            "samples": len(holdout),
        }
        for place, (row, artifact) in enumerate(artifacts.items())
    ]
    if default is None:
        rows.append({"row": DEFAULT, "note": notes[DEFAULT]})
    facts = list(known(target, layers(target, artifacts[COMPRESSED], example), report, rows))
    return {"target": name, "version": target.version(), "rows": rows, "verdict": verdict(rows, facts)}


def misses(rows: Sequence[Row]) -> list[str]:
    """Where the compressed model is not smaller and faster than the others of its target."""
    ours = next(r for r in rows if r["row"] == COMPRESSED)
    said = []
    for other in (r for r in rows if r["row"] != COMPRESSED and "size_bytes" in r):
        if ours["size_bytes"] >= other["size_bytes"]:
            said.append(f"not smaller than {other['row']} ({ours['size_bytes'] / other['size_bytes']:.2f} of its bytes)")
        said += [
            f"not faster than {other['row']} at {n} thread{'s' * (n != '1')} ({ms / other['latency_ms'][n]:.2f} of its time)"
            for n, ms in ours["latency_ms"].items()
            if ms >= other["latency_ms"][n]
        ]
    return said


def known(target: Target, layers: Sequence[Operation], report: Report, rows: Sequence[Row]) -> Iterator[str]:
    """What the target, the artefact's operations, the build's report and the rows tell that can stand in the way."""
    if not any(target.executes(Affine(), op, "integer") for op in ("conv1d", "conv2d", "linear")):
        yield f"{target.name} executes no layer in integers"
    elif floating := [o for o in layers if o.executes == "float"]:
        yield f"{len(floating)} of {len(layers)} layers run in float"
    found = {r["row"]: r for r in rows}
    allowed = None if report.drop is None else report.drop.allowed
    if allowed is not None and "quality" in found[DEFAULT] and (lost := found[FLOAT]["quality"] - found[DEFAULT]["quality"]) > allowed:
        yield f"{DEFAULT} loses {lost:.4f} where {allowed:g} is allowed"
    if report.cheaper:
        yield f"{report.cheaper} measured candidates were better in {report.minimize} and lost more than is allowed"
    failed = [] if report.certificate is None else [s for s in report.certificate.sequence if not s.passed]
    if failed:
        yield f"{len(failed)} of {len(report.certificate.sequence)} finalists failed on the holdout"  # type: ignore[union-attr]  # failed is empty without one
    steps = report.schedule.recovery_steps
    yield f"{steps} training steps fitted into {report.schedule.seconds:.0f} s" if steps else "nothing was trained"
    if report.schedule.schedule_truncated:
        yield "its search was cut off by --time"


def verdict(rows: Sequence[Row], facts: Iterable[str]) -> str:
    """Smaller and faster than both, or why not."""
    missed = misses(rows)
    others = [r["row"] for r in rows if r["row"] != COMPRESSED and "size_bytes" in r]
    if not missed:
        return "smaller and faster than " + ("both" if len(others) > 1 else f"{others[0]}, which is all there is to compare with")
    return f"{'; '.join(missed)}. Known: {'; '.join(facts)}"


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown, a row for each artefact; what stopped has one row."""
    yield f"| runtime | model | KB | memory, KB | ms, {' / '.join(map(str, THREADS))} threads | quality | smaller and faster than both, or why not |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        name = f"{each['target']} {each['version']}".strip()
        if "stopped" in each:
            yield f"| {name} | | | | | | {each['stopped']} |"
            continue
        base = next(r for r in each["rows"] if r["row"] == FLOAT)
        for row in each["rows"]:
            if "size_bytes" not in row:
                yield f"| {name} | {row['row']} | | | | | {row['note']} |"
                continue
            size = f"{row['size_bytes'] / 1e3:,.1f}" + (f" ({base['size_bytes'] / row['size_bytes']:.2f}x smaller)" if row is not base else "")
            times = " / ".join(f"{row['latency_ms'][n]:.3f}" if n in row["latency_ms"] else "-" for n in map(str, THREADS))
            faster = f" ({base['latency_ms']['1'] / row['latency_ms']['1']:.2f}x faster)" if row is not base else ""
            note = f"{each['verdict']} ({row['note']})" if row["row"] == COMPRESSED else row["note"]
            yield (
                f"| {name} | {row['row']} | {size} | {row['memory_bytes'] / 1e3:,.1f} | {times}{faster} | {row['quality']:.4f} ({row['samples']:,}) | {note} |"
            )


def one(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Everything about a target; what stops it is told, not raised."""
    kind = find("targets", name)
    stopped = {"target": name, "version": ""}
    try:
        kind.require()
        if build_of(given.builds, kind()) is None and given.time:
            compress(given.task, name, given, given.builds / name)
        build = build_of(given.builds, kind())
        if build is None:
            return stopped | {"stopped": f"{given.builds} holds no finished run for it" + ("; its compression stopped" if given.time else "")}
        # Runtimes end the whole process where they fail badly, and share pools of threads that belong to it.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measured, str(given.task), name, build, given.seconds, given.samples, given.quality_seconds).result()
    except SlimlineError as error:
        return stopped | {"stopped": " ".join(filter(None, (error.message, error.hint)))}
    except BrokenProcessPool:
        return stopped | {"stopped": "the process that measured it ended abruptly"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--target", action="append", default=[], help="may be repeated (all)")
    parser.add_argument("--builds", type=Path, default=Path("build/targets"))
    parser.add_argument("--json", type=Path, default=Path("build/targets.json"))
    parser.add_argument("--time", default="", help="compress what --builds lacks, each target for so long")
    parser.add_argument("--max-drop", default="1%")
    parser.add_argument("--minimize", default="latency")
    parser.add_argument("--samples", type=int, default=10_000, help="of the holdout, at most")
    parser.add_argument("--quality-seconds", type=float, default=120.0, help="of running the holdout, for each artefact")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, for each artefact and number of threads")
    parser.add_argument("--again", action="store_true", help="measure anew what --json holds already")
    parser.add_argument("--table", action="store_true", help="only print what --json holds")
    given = parser.parse_args(arguments)
    kept: dict[str, dict[str, Any]] = {each["target"]: each for each in json.loads(given.json.read_text())["targets"]} if given.json.is_file() else {}
    for name in () if given.table else given.target or registered("targets"):
        if name in kept and "stopped" not in kept[name] and not given.again:
            continue
        kept[name] = one(name, given)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        part = given.json.with_suffix(".part")
        part.write_text(json.dumps({"task": given.task.name, "environment": environment(), "targets": list(kept.values())}, indent=2))
        os.replace(part, given.json)
    print("\n".join(table(list(kept.values()))))


if __name__ == "__main__":
    main()
