"""``slimline log``: a finished run in MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._logging import log_run


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--to", default="", metavar="URI", help="An MLflow tracking URI. [default: MLFLOW_TRACKING_URI, else mlflow.db and mlruns/ in the current folder]"
)
@click.option("--experiment", default="", metavar="NAME", help="[default: the model's name]")
@click.option("--again", is_flag=True, help="Also if this very run was logged before.")
def command(directory: Path, to: str, experiment: str, again: bool) -> int:
    """Log the run in DIR to MLflow: parameters, metrics, all files, and an ONNX artefact as a model that MLflow can serve.

    A run that was logged before is not logged twice. MLflow's usage statistics are switched off.
    """
    log_run(directory, to, experiment=experiment, again=again)
    return 0
