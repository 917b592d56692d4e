"""``slimline explain``: what was decided, and why."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._invocation import console
from slimline.core.whole import write_whole
from slimline.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--task", metavar="MODEL", help="Also run the original and the artefact on this task's holdout samples: what was lost, by sample and class.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors", help="A state dict to load into the task's model.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Take the task's data, metric and slices from another file, as an ONNX or Keras model needs.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also write it all as one page.")
@click.option("--show-samples", is_flag=True, help="Put the images that were lost into the page (with --task and --html). Mind who gets it.")
def command(directory: Path, task: str | None, weights: Path | None, data: Path | None, html: Path | None, show_samples: bool) -> int:
    """Say for every part of the model in DIR what was decided, and why; what binds, and what a little more of each budget would buy.

    Also: the samples, classes and slices that the compressed model gets wrong and the original right, the calibration of both, and the drop
    under mild noise, blur and contrast; with --task, of all holdout samples anew.
    """
    if show_samples and (html is None or task is None):
        raise UsageError("--show-samples needs --task and --html.", hint="The images come from the task, and go into the page.")
    from slimline.report.finished import read_report
    from slimline.report.terminal import explain

    report, images = read_report(directory), {}
    if task is not None:
        from slimline.project.closeup import look_again, pictures
        from slimline.sources.dispatch import open_source
        from slimline.trust.loading import load_weights

        source = open_source(task, weights=None if weights is None else load_weights(weights), data=data)
        seen = look_again(directory, source)
        report = report.model_copy(update={"close_up": seen})
        images = pictures(seen, source) if show_samples else {}
    explain(report, console(False))
    if html is not None:
        from slimline.report.html import render

        write_whole(html, render(report, images).encode())
        click.echo(f"\nThe page: {html}")
    return 0
