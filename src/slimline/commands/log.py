"""``slimline log``: a finished run in MLflow."""

from __future__ import annotations

from pathlib import Path

import click


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
    from slimline.report.finished import Finished, added
    from slimline.store.mlflow import log

    run = Finished.read(directory)
    run.check()
    done = log(run.report, directory, [*run.files, "manifest.json", *sorted(added(directory))], to=to, experiment=experiment, again=again)
    where = f"run {done.run} of experiment {done.experiment} in {done.store}"
    click.echo(f"{directory}: {f'logged as {where}' if done.new else f'was logged before, as {where}; --again logs it once more'}")
    if done.new and not done.flavour:
        click.echo(f"MLflow has no flavour for {run.report.target}: the model is among the files only.")
    return 0
