"""``slimline init``: a first project file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from slimline.commands._options import project_option
from slimline.core.whole import write_whole, written
from slimline.errors import OutputError, UsageError

SCHEMA = "slimline.schema.json"  # beside the file, committed with it: hidden folders are not


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@project_option
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors", help="A state dict to load into the model.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.py", help="Take data, metric, loss and example from another file.")
@click.option("--metric", default="", metavar="NAME", help="A built-in metric instead of the task's own.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the project file, and stop.")
@click.option("--force", is_flag=True, help="Overwrite the project file.")
def command(model: str | None, file: Path, weights: Path | None, data: Path | None, metric: str, schema: bool, force: bool) -> int:
    """Write a project file for MODEL (FILE.py or FILE.py:function) by looking at it; the limits in it are a proposal to edit."""
    from slimline.project.file import Project, json_schema

    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return 0
    if model is None:
        raise UsageError("No model is given.", hint="Write `slimline init TASK.py`.")
    if file.exists() and not force:
        raise OutputError(f"{file} is there already.", hint="Edit it, or give --force to overwrite it.")
    from slimline.commands._request import check_metric
    from slimline.project.draft import draft, look_at
    from slimline.sources.dispatch import open_source
    from slimline.trust.loading import load_weights

    check_metric(metric)
    task = open_source(model, weights=None if weights is None else load_weights(weights), data=data, metric=metric)
    look = look_at(task)

    def here(path: str | Path | None) -> str:
        return "" if path is None else os.path.relpath(path, file.parent).replace(os.sep, "/")

    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in task.name).strip("._-") or "model"
    with written(file, "--file"):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file.parent / SCHEMA, (json.dumps(json_schema(), indent=2) + "\n").encode())
        write_whole(file, draft(name, here(model), look, weights=here(weights), data=here(data), metric=metric, schema=f"./{SCHEMA}").encode())
    Project.load(file)
    click.echo(
        f"Wrote {file}, and {SCHEMA} beside it, by which editors check it: commit both. Edit its limits, then: slimline run, slimline accept, slimline check."
    )
    return 0
