"""``slimline unpack``: the runtime's file out of an archive."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.core.whole import write_whole
from slimline.errors import OutputError, UsageError


@click.command()
@click.argument("archive", type=click.Path(path_type=Path), metavar="FILE.slim")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Where the model file goes.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def command(archive: Path, out: Path, force: bool) -> int:
    """Give the file back that `slimline pack` was given, bit for bit: its sha256 is checked before anything is written."""
    from slimline.archive.container import unpack

    if not archive.is_file():
        raise UsageError(f"There is no archive {archive}.", hint="Give a file that `slimline pack` wrote.")
    if out.exists() and not force:
        raise OutputError(f"{out} is already there.", hint="Give another --out, or --force.")
    payload, suffix = unpack(archive.read_bytes())
    write_whole(out, payload)
    click.echo(f"{out}: {len(payload):,} bytes" + (f"; it was a {suffix} file" if suffix != out.suffix else ""))
    return 0
