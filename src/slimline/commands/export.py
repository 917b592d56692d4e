"""``slimline export``: a finished plan in another runtime, or as a Keras file again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slimline.commands._invocation import reserved_stdout
from slimline.commands._request import check_metric, targets_of
from slimline.core.whole import written
from slimline.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--target", default="", metavar="NAME", help="The runtime to lower to; `slimline targets` lists them.")
@click.option("--keras", type=click.Path(path_type=Path), metavar="FILE.keras", help="Instead: the Keras file that was compressed, to be written again with the new weights.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.py", help="Gives data(split), and metric if there is one; without it outputs are compared on the example alone.")  # fmt: skip
@click.option("--metric", default="", metavar="NAME", help="A built-in metric.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the artefact goes (DIR/NAME; the Keras file: DIR/model.keras).")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The runtime's threads.")
@click.option("--force", is_flag=True, help="Overwrite what is in --out.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    directory: Path, target: str, keras: Path | None, data: Path | None, metric: str, out: Path | None, threads: int, force: bool, as_json: bool
) -> int:
    """Lower the plan in DIR, made by an earlier `slimline compress`, to another runtime, and say what changed. Nothing is searched or trained."""
    if bool(target) == (keras is not None):
        raise UsageError("slimline export writes for one runtime, or a Keras file.", hint="Give --target NAME or --keras FILE.keras.")
    check_metric(metric)
    if keras is not None:
        return _keras(directory, keras, directory / "model.keras" if out is None else out, force, as_json)
    targets_of((target,))
    where = directory / target if out is None else out
    with reserved_stdout(as_json) as stdout, written(where):
        from slimline.job.export import export_plan
        from slimline.sources.task_file import TaskFile

        task = None if data is None else TaskFile.load(str(data), metric=metric)
        figures = export_plan(directory, target, where, task=task, threads=threads, force=force)
        click.echo(json.dumps(figures, indent=2) if as_json else _as_lines(figures, where), file=stdout)
    return 0


def _keras(directory: Path, original: Path, out: Path, force: bool, as_json: bool) -> int:
    with reserved_stdout(as_json) as stdout, written(out):
        from slimline.job.keras_file import as_lines, write_keras

        figures = write_keras(directory, original, out, force=force)
        click.echo(json.dumps(figures, indent=2) if as_json else as_lines(figures, out), file=stdout)
    return 0


def _as_lines(figures: dict[str, Any], where: Path) -> str:
    from slimline.report.sentence import latency_text, number_of, time_text

    before, close, latency = figures["from"], figures["agreement"], figures["latency_ms"]
    layers = figures["layers"]
    told = f"{latency_text(before['latency_ms']['median'], before['latency_ms'].get('estimated', False))} in {before['target']}"
    top1 = "" if close["top1"] is None else f"top-1 {close['top1']:.4f}, "
    lines = [
        f"{where / figures['file']}, for {figures['target']} {figures['version']}",
        f"  size       {figures['size_bytes']:,} bytes ({before['size_bytes']:,} in {before['target']})",
        f"  latency    {time_text(latency['median'])} median on this machine ({told}, when it was compressed)",
        f"  layers     {layers['integer']} in integers, {layers['float']} in float",
        f"  agreement  {top1}cosine {close['cosine']:.5f} with the compressed model, on {figures['samples']:,} {figures['split']} samples",
    ]
    if figures["quality"] is not None:
        lines.append(f"  quality    {figures['quality']:.4f}")
    changed = figures["changed"]
    lines.append(f"  changed    {number_of(len(changed), 'thing')} (there are {figures['weights']} stored weights)" + (":" if changed else ""))
    return "\n".join([*lines, *(f"    {c}" for c in changed)])
