"""``slimline explain``: what was decided, and why."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._invocation import console
from slimline.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--task", metavar="MODEL", help="Also run the original and the artefact on this task's holdout samples: what was lost, by sample and class.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors", help="A state dict to load into the task's model.")
def command(directory: Path, task: str | None, weights: Path | None) -> int:
    """Say for every part of the model in DIR what was decided, and why.

    With --task, also: the samples and classes that the compressed model gets wrong and the original right, the calibration of
    both, and the drop under mild noise, blur and contrast.
    """
    if not (directory / "report.json").is_file():
        raise UsageError(f"There is no report in {directory}.", hint="Give the --out folder of an earlier `slimline compress`.")
    from slimline.report.terminal import explain as explain_report

    explain_report(directory, console(False))
    if task is not None:
        from slimline.project.closeup import close_up, lines
        from slimline.sources.dispatch import open_source
        from slimline.trust.loading import load_weights

        source = open_source(task, weights=None if weights is None else load_weights(weights))
        click.echo("\n" + "\n".join(lines(close_up(directory, source))))
    return 0
