"""An artefact in its runtime, on any data, with nothing but its file: what ``slimline measure`` says and ``slimline.measure`` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from slimline.archive.container import download
from slimline.core.contracts import Artifact, Port, Target, Task
from slimline.core.registry import find, registered
from slimline.core.request import Request
from slimline.core.samples import Samples
from slimline.errors import LoweringError, ModelError, SlimlineError, TargetNotInstalled, UsageError
from slimline.job.context import as_outputs, flat
from slimline.measure import quality
from slimline.measure.fresh import run_fresh
from slimline.model.recover import evaluate
from slimline.model.texts import MOST_TEXTS, usual
from slimline.sources.artefact import check_artefact, check_trust
from slimline.sources.validate import check_labels, check_samples


class Given(Task, Protocol):
    """A task that may have a model, and says whether metric and model are the user's own."""

    @property
    def has_metric(self) -> bool: ...
    @property
    def has_model(self) -> bool: ...
    def model(self) -> nn.Module: ...
    def given(self, split: str) -> Samples | None: ...


def figures(path: Path, task: Given, where: str, request: Request, *, trusted: bool) -> dict[str, Any]:
    """Bytes, latency and quality of the model file ``path``, or of the one in that folder, on the task's holdout (else search) samples.

    ``where``: what messages call the task. Of ``request`` only target (empty: the first that takes the file), metric, and the budget's batch and threads count.

    Raises:
        UsageError: there is no such file, no samples, or they are not what the file takes; a ``.pt2`` file that is not ``trusted``.
        ModelError: the runtime refuses the file.
        TargetNotInstalled: no runtime for it is installed.
    """
    batch, threads = request.budget.batch, request.budget.threads
    file, artifact, runtime = _opened(path, request.target, trusted)
    split = next((s for s in ("holdout", "search") if task.given(s) is not None), None)
    samples = None if split is None else task.given(split)
    if samples is None:
        raise UsageError(f"{where} gives neither holdout nor search samples.", hint="Let data('holdout') return (inputs, targets).")
    check_samples(samples, str(split))
    given = _check_inputs(file, runtime.ports(artifact), samples[:1])
    check_artefact(file, runtime.runner, runtime.name, given)
    outputs, rss_bytes = run_fresh(runtime, file, artifact.inputs, samples, threads=threads)
    tree = _as_the_model_gives(outputs, task)
    targets = samples.targets if samples.targets is not None else _original_outputs(task, where, samples)
    check_labels(tree, targets, str(split))
    name, function = quality.chosen(request.metric, task, lambda: tree, samples.targets)
    score, _ = quality.evaluate(function, tree, targets)
    latency = runtime.latency([artifact], usual(samples, batch), batch=batch, threads=threads)[0]
    archive = download(artifact.content)
    return {
        "file": str(file), "target": artifact.target, "size_bytes": artifact.size_bytes, "download_bytes": archive.bytes, "download_codec": archive.codec,
        "memory_bytes": runtime.memory(artifact, usual(samples, MOST_TEXTS)), "rss_bytes": rss_bytes, "latency_ms": latency.model_dump(),
        "quality": score, "metric": name, "split": split, "samples": len(samples),
    }  # fmt: skip


def _opened(path: Path, target: str, trusted: bool) -> tuple[Path, Artifact, Target]:
    """The file, its artefact and its runtime: ``target``, or by the suffix."""
    known: dict[str, list[Any]] = {}
    for one in [find("targets", target)] if target else registered("targets").values():
        known.setdefault(one.suffix, []).append(one)
    file = next((path / f"model{s}" for s in known if (path / f"model{s}").is_file()), None) if path.is_dir() else path
    if file is None or not file.is_file():
        raise UsageError(
            f"There is no model in {path}." if path.is_dir() else f"The artefact {path} does not exist.",
            hint=f"Give a file ({', '.join(known)}), or the --out folder of `slimline compress`.",
        )
    if file.suffix not in known:
        raise UsageError(
            f"{target or 'No target'} {'does not run' if target else 'runs'} a {file.suffix or 'suffixless'} file ({file}).", hint=f"Known: {', '.join(known)}."
        )
    kinds = [k for k in known[file.suffix] if k.installed()]
    if not kinds:
        kind = known[file.suffix][0]
        raise TargetNotInstalled(f"The target {kind.name} is not installed.", hint=f"Install it with: {kind.install}")
    check_trust(file, trusted)
    refused: SlimlineError | None = None
    for kind in kinds:  # several runtimes share a suffix: the first that takes the file
        try:
            check_artefact(file, kind.runner, kind.name)
            return file, kind().opened(Artifact.read(kind.name, file, kind.beside)), kind()
        except (LoweringError, ModelError) as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _check_inputs(file: Path, ports: Sequence[Port], samples: Samples) -> dict[str, torch.Tensor]:
    """The inputs that the file wants by name; the data has them, each of the right type and shape."""
    names = [p.name for p in ports]
    free = [n for n in names if n not in samples.kwargs]
    given = dict(zip(free, samples.args, strict=False)) | samples.kwargs
    if set(given) != set(names) or len(samples.args) > len(free):
        raise UsageError(
            f"{file} takes the inputs {', '.join(names)}, the data gives {len(samples.tensors)}: {', '.join(samples.kwargs) or 'by position'}.",
            hint="Return the same inputs as when it was compressed.",
        )
    for wanted in ports:
        tensor = given[wanted.name]
        ours = str(tensor.dtype).removeprefix("torch.")
        fits = len(wanted.shape) == tensor.ndim and all(d is None or i == 0 or d == tensor.shape[i] for i, d in enumerate(wanted.shape))
        if wanted.dtype != ours or not fits:
            shape = ["N", *("?" if d is None else d for d in wanted.shape[1:])]
            raise UsageError(
                f"{file} takes {wanted.name} as {wanted.dtype} {shape}, the data gives {ours} {['N', *tensor.shape[1:]]}.".replace("'", ""),
                hint="Return inputs as when it was compressed.",
            )
    return given


def _as_the_model_gives(outputs: tuple[Any, ...], task: Given) -> Any:
    """The artefact's flat outputs in the structure that the user's metric knows: the model's own if the file has one."""
    if task.has_metric and task.has_model:
        original = evaluate(task.model(), task.example())
        if len(flat(original)) == len(outputs):
            return as_outputs(outputs, original)
    return outputs[0] if len(outputs) == 1 else outputs


def _original_outputs(task: Given, where: str, samples: Samples) -> Any:
    """Where there are no labels, the original's outputs take their place."""
    if not task.has_model:
        raise UsageError(f"{where} gives no targets and no model() to compare with.", hint="Return (inputs, targets), or define model() there too.")
    return evaluate(task.model(), samples)
