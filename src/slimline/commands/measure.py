"""``slimline measure``: an artefact in its runtime, on any data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from slimline.commands._invocation import reserved_stdout
from slimline.commands._request import check_metric


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
        from slimline.core.budget import Budget
        from slimline.core.request import Request
        from slimline.job.measured import figures
        from slimline.sources.task_file import TaskFile

        check_metric(metric)
        task = TaskFile.load(str(data), metric=metric)
        request = Request(target="", metric=task.metric_name, budget=Budget(batch=batch, threads=threads))
        found = figures(artefact, task, str(task.path), request, trusted=trust)
        click.echo(json.dumps(found, indent=2) if as_json else _as_lines(found), file=stdout)
    return 0


def _as_lines(figures: dict[str, Any]) -> str:
    latency = figures["latency_ms"]
    return "\n".join((
        f"{figures['file']}, in {figures['target']}",
        f"  size      {figures['size_bytes']:,} bytes ({figures['download_bytes']:,} to download, {figures['download_codec']})",
        f"  memory    {figures['memory_bytes']:,} bytes (the process: {figures['rss_bytes']:,})",
        f"  latency   {latency['median']:.3f} ms median, {latency['p95']:.3f} ms p95 ({latency['runs']} runs, batch {latency['batch']}, threads {latency['threads']})",
        f"  quality   {figures['quality']:.4f} {figures['metric']} on {figures['samples']:,} {figures['split']} samples",
    ))  # fmt: skip
