"""A finished plan lowered to another runtime, and what that changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from slimline.core.contracts import Operation, Target, Task
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import OutputError
from slimline.job.context import as_outputs, flat
from slimline.measure import quality
from slimline.measure.agreement import agreement
from slimline.measure.fresh import run_fresh
from slimline.model import stored
from slimline.model.between import completed
from slimline.model.program import Program
from slimline.model.recover import evaluate
from slimline.report import operations as operations_json
from slimline.report.finished import read_run

FILES = ("stored.pt2", "plan.safetensors", "report.json")
RANGE_SAMPLES = 256  # that set the ranges of values between integer layers


def export_plan(directory: Path, target: str, out: Path, *, task: Task | None = None, threads: int = 1, force: bool = False) -> dict[str, Any]:
    """The figures of ``directory``'s plan in ``target``, which lies in ``out`` afterwards: the artefact, ``operations.json`` and ``export.json``.

    Nothing is searched or trained; the weights' integers stay what they are. What the runtime cannot execute as it was is
    changed as little as possible and listed, and so is every layer that it runs in float though it was an integer one.
    ``task``: gives samples on which outputs and quality are compared, else the example is used; and those that set the ranges of
    values between integer layers, where the runtime needs all of them on grids.

    Raises:
        UsageError: no finished run there, or ``out`` is in use.
        ModelError: a file is not the one that the run wrote.
        LoweringError: the target refuses the model.
    """
    content = read_run(directory, FILES)
    kind = find("targets", target)
    kind.require()
    if out.exists() and any(out.iterdir()) and not force:
        raise OutputError(f"{out} is not empty.", hint="Give another --out, or --force.")
    runtime: Target = kind()
    program = stored.load(content["stored.pt2"], load_tensors(content["plan.safetensors"]))
    report = json.loads(content["report.json"])
    changed, sentences = stored.adapted(program, runtime.executes)
    changed, rounded = _completed(runtime, changed, task)
    artifact = runtime.lower(changed, program.example)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"model{artifact.suffix}"
    artifact.write(file)
    for name, content_ in (runtime.products(artifact, "model") if hasattr(runtime, "products") else {}).items():
        (out / name).write_bytes(content_)
    split, samples = _samples(task, program.example)
    outputs, rss = run_fresh(runtime, file, artifact.inputs, samples, threads=threads)
    expected = evaluate(program.module, samples)
    found = runtime.operations(artifact, program.example, threads=threads)
    (latency,) = runtime.latency([artifact], program.example, threads=threads)
    figures: dict[str, Any] = {
        "schema": 1,
        "from": {"target": report["target"], "size_bytes": report["compressed"]["size_bytes"], "latency_ms": report["compressed"]["latency_ms"]},
        "target": target,
        "version": kind.version(),
        "changed": [*sentences, *rounded, *_floating(target, changed, found)],
        "weights": len(program.encoded),
        "size_bytes": artifact.size_bytes,
        "memory_bytes": runtime.memory(artifact, program.example),
        "rss_bytes": rss,
        "latency_ms": latency.model_dump(),
        "layers": _layers(found),
        "agreement": agreement(outputs, flat(expected)).model_dump(),
        "samples": len(samples),
        "split": split,
        "quality": None if task is None or samples.targets is None else _quality(task, as_outputs(outputs, expected), samples.targets),
        "file": file.name,
    }
    (out / "operations.json").write_text(operations_json.dumps(target, kind.version(), found, threads))
    (out / "export.json").write_text(json.dumps(figures, indent=2))
    return figures


def _completed(runtime: Target, program: Program, task: Task | None) -> tuple[Program, tuple[str, ...]]:
    """With values on grids wherever the runtime stays in integers only then, and what was rounded; as it is without samples to set ranges by."""
    splits = (task.data(name) for name in ("train", "search")) if task is not None else ()
    samples = next((s for s in splits if s is not None), None)
    if samples is None or not getattr(runtime, "integer_throughout", False):
        return program, ()
    chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:RANGE_SAMPLES]
    new, values = completed(program, samples[chosen].without_targets())
    return new, tuple(f"{v}: float32, becomes int8, its range from {len(chosen)} samples" for v in values)


def _floating(target: str, program: Program, found: Sequence[Operation]) -> Iterator[str]:
    """A sentence for each layer that is to run in integers, and that reads back otherwise or not at all."""
    told, floating = {o.weight for o in found}, {o.weight for o in found if o.executes != "integer"}
    for name, encode in program.encoded.items():
        if encode.execute != "float" and (name in floating or name not in told):
            how = f"runs in float in {target}" if name in told else f"{target} does not tell how it runs"
            yield f"{name}: {encode.format.name}, {encode.execute}, {how}"


def _samples(task: Task | None, example: Samples) -> tuple[str, Samples]:
    for split in ("holdout", "search") if task is not None else ():
        assert task is not None
        samples = task.data(split)
        if samples is not None:
            return split, samples
    return "example", example


def _quality(task: Task, outputs: Any, targets: Any) -> float:
    _, metric = quality.chosen(getattr(task, "metric_name", ""), task, lambda: outputs, targets)
    return quality.evaluate(metric, outputs, targets)[0]


def _layers(found: tuple[Operation, ...]) -> dict[str, int]:
    """How many operations with a weight run in integers, and how many in float."""
    weighted = [o for o in found if o.weight]
    return {kind: sum(o.executes == kind for o in weighted) for kind in ("integer", "float")}
