"""``slimline measure``: an artefact in its runtime, on any data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimline.commands._invocation import reserved_stdout
from slimline.commands._request import check_metric
from slimline.errors import LoweringError, ModelError, SlimlineError, TargetNotInstalled, UsageError

if TYPE_CHECKING:
    import torch

    from slimline.core.contracts import Artifact, Port
    from slimline.core.samples import Samples
    from slimline.core.trial import Latency
    from slimline.sources.task_file import TaskFile


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path), metavar="ARTEFACT")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FILE.py", help="Gives data(split), and metric if there is one.")
@click.option("--metric", default="", metavar="NAME", help="A built-in metric.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call when latency is measured.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The runtime's threads.")
@click.option("--trust", is_flag=True, help="Open a .pt2 file, a torch.export program, although it can run code.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(artefact: Path, data: Path, metric: str, batch: int, threads: int, trust: bool, as_json: bool) -> int:
    """Measure ARTEFACT, a model file or the folder that holds it, in its runtime and on any data."""
    with reserved_stdout(as_json) as stdout:
        from slimline.sources.task_file import TaskFile

        check_metric(metric)
        figures = _figures(artefact, TaskFile.load(str(data), metric=metric), batch, threads, trusted=trust)
        click.echo(json.dumps(figures, indent=2) if as_json else _as_lines(figures), file=stdout)
    return 0


def _figures(path: Path, task: TaskFile, batch: int, threads: int, *, trusted: bool) -> dict[str, Any]:
    """Everything that can be measured of an artefact with nothing but its file and data."""
    from slimline.archive.container import download
    from slimline.measure.fresh import run_fresh
    from slimline.measure.quality import chosen, evaluate
    from slimline.sources.artefact import check_artefact
    from slimline.sources.validate import check_labels

    file, artifact, target = _opened(path, trusted)
    split = next((s for s in ("holdout", "search") if task.given(s) is not None), None)
    samples = None if split is None else task.given(split)
    if samples is None:
        raise UsageError(f"{task.path} gives neither holdout nor search samples.", hint="Let data('holdout') return (inputs, targets).")
    given = _check_inputs(file, target.ports(artifact), samples[:1])
    check_artefact(file, target.runner, target.name, given)
    outputs, rss_bytes = run_fresh(target, file, artifact.inputs, samples, threads=threads)
    tree = _as_the_model_gives(outputs, task)
    targets = samples.targets if samples.targets is not None else _original_outputs(task, samples)
    check_labels(tree, targets, str(split))
    name, metric = chosen(task.metric_name, task, lambda: tree, samples.targets)
    quality, _ = evaluate(metric, tree, targets)
    latency: Latency = target.latency([artifact], samples[:1], batch=batch, threads=threads)[0]
    archive = download(artifact.content)
    return {
        "file": str(file), "target": artifact.target, "size_bytes": artifact.size_bytes, "download_bytes": archive.bytes, "download_codec": archive.codec,
        "memory_bytes": target.memory(artifact, samples[:batch]), "rss_bytes": rss_bytes, "latency_ms": latency.model_dump(),
        "quality": quality, "metric": name, "split": split, "samples": len(samples),
    }  # fmt: skip


def _opened(path: Path, trusted: bool) -> tuple[Path, Artifact, Any]:
    """The file, its artefact and its runtime, by the suffix."""
    from slimline.core.contracts import Artifact
    from slimline.core.registry import registered
    from slimline.sources.artefact import check_artefact, check_trust

    known: dict[str, list[Any]] = {}
    for one in registered("targets").values():
        known.setdefault(one.suffix, []).append(one)
    file = next((path / f"model{s}" for s in known if (path / f"model{s}").is_file()), None) if path.is_dir() else path
    if file is None or not file.is_file():
        raise UsageError(
            f"There is no model in {path}." if path.is_dir() else f"The artefact {path} does not exist.",
            hint=f"Give a file ({', '.join(known)}), or the --out folder of `slimline compress`.",
        )
    if file.suffix not in known:
        raise UsageError(f"No target runs a {file.suffix or 'suffixless'} file ({file}).", hint=f"Known: {', '.join(known)}.")
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


def _as_the_model_gives(outputs: tuple[Any, ...], task: TaskFile) -> Any:
    """The artefact's flat outputs in the structure that the user's metric knows: the model's own if the file has one."""
    if task.has_metric and task.has_model:
        import torch
        from torch.utils import _pytree

        example = task.example()
        with torch.no_grad():
            leaves, structure = _pytree.tree_flatten(task.model()(*example.args, **example.kwargs))
        if len(leaves) == len(outputs):
            return _pytree.tree_unflatten(list(outputs), structure)
    return outputs[0] if len(outputs) == 1 else outputs


def _original_outputs(task: TaskFile, samples: Samples) -> Any:
    """Where there are no labels, the original's outputs take their place."""
    if not task.has_model:
        raise UsageError(f"{task.path} gives no targets and no model() to compare with.", hint="Return (inputs, targets), or define model() there too.")
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        parts = [_pytree.tree_flatten(task.model()(*b.args, **b.kwargs)) for b in samples.batches(256)]
    return _pytree.tree_unflatten([torch.cat(column) for column in zip(*(leaves for leaves, _ in parts), strict=True)], parts[0][1])


def _as_lines(figures: dict[str, Any]) -> str:
    latency = figures["latency_ms"]
    return "\n".join((
        f"{figures['file']}, in {figures['target']}",
        f"  size      {figures['size_bytes']:,} bytes ({figures['download_bytes']:,} to download, {figures['download_codec']})",
        f"  memory    {figures['memory_bytes']:,} bytes (the process: {figures['rss_bytes']:,})",
        f"  latency   {latency['median']:.3f} ms median, {latency['p95']:.3f} ms p95 ({latency['runs']} runs, batch {latency['batch']}, threads {latency['threads']})",
        f"  quality   {figures['quality']:.4f} {figures['metric']} on {figures['samples']:,} {figures['split']} samples",
    ))  # fmt: skip
