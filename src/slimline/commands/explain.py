"""``slimline explain``: what was decided, and why."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._invocation import console
from slimline.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def command(directory: Path) -> int:
    """Say for every part of the model in DIR what was decided, and why."""
    if not (directory / "report.json").is_file():
        raise UsageError(f"There is no report in {directory}.", hint="Give the --out folder of an earlier `slimline compress`.")
    from slimline.report.terminal import explain as explain_report

    explain_report(directory, console(False))
    return 0
