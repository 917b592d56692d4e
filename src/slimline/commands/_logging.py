"""A finished run into MLflow, as `slimline log` and the option `--mlflow` do it."""

from __future__ import annotations

from pathlib import Path

import click

LOCAL = "local"  # MLflow's own default, as an option that takes a URI must name it


def check_logging(to: str) -> None:
    """What ``--mlflow`` needs is there, before the work begins.

    Raises:
        UsageError: MLflow is not installed.
    """
    if to:
        from slimline.core.extras import require

        require("mlflow", "mlflow", "--mlflow")


def log_run(directory: Path, to: str, *, experiment: str = "", again: bool = False) -> None:
    """Log the run in a folder, and say where it went.

    Raises:
        UsageError: there is no finished run, or MLflow is not installed.
        OutputError: the store cannot be reached.
    """
    from slimline.report.finished import Finished, added
    from slimline.store.mlflow import log

    run = Finished.read(directory)
    run.check()
    files = [*run.files, "manifest.json", *sorted(added(directory))]
    done = log(run.report, directory, files, to="" if to == LOCAL else to, experiment=experiment, again=again)
    where = f"run {done.run} of experiment {done.experiment} in {done.store}"
    click.echo(f"{directory}: {f'logged as {where}' if done.new else f'was logged before, as {where}; `slimline log --again` logs it once more'}")
    if done.new and not done.flavour:
        click.echo(f"MLflow has no flavour for {run.report.target}: the model is among the files only.")
