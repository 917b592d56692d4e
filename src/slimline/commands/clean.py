"""``slimline clean``: remove the caches of runs."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.errors import UsageError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("build"), metavar="[FOLDER]")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and stop.")
def command(folder: Path, dry_run: bool) -> int:
    """Remove the caches of the runs at and below FOLDER (build), and say how much they held.

    Artefacts, plans, reports and journals stay. A run that is going on is left alone; an interrupted one can still go on with --resume, but
    measures again what the cache held.
    """
    from slimline.report.sentence import bytes_text
    from slimline.store.clean import find, remove

    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", hint="Give the --out folder of `slimline compress`, or one above it.")
    total = 0
    for found in find(folder):
        if found.busy:
            click.echo(f"{found.folder}: a run is going on, left alone")
            continue
        if not dry_run:
            remove(found)
        total += found.bytes
        click.echo(f"{found.folder}: {bytes_text(found.bytes)} in {len(found.files)} files")
    click.echo(f"{bytes_text(total)} {'would be removed' if dry_run else 'removed'}")
    return 0
