"""``slimline accept``: move the baseline."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._options import project_option


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@project_option
@click.option("--force", is_flag=True, help="Accept artefacts that failed their budget, too.")
@click.option("--dry-run", is_flag=True, help="Show the change of the lock only.")
def command(names: tuple[str, ...], file: Path, force: bool, dry_run: bool) -> int:
    """Make the current artefacts the baseline of `slimline check`: their plans, digests and figures go into the lock.

    The change is printed as a diff. Commit the lock and the folder of accepted artefacts.
    """
    from slimline.project.file import Project
    from slimline.project.lock import accept

    project = Project.load(file)
    change = accept(project, project.items(names), whatever=force, dry_run=dry_run)
    click.echo(change or f"{project.lock} is as it was.", nl=not change)
    return 0
