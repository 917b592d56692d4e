"""``slimline verify``: whether these are the files that were signed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@click.option("--key", required=True, type=click.Path(path_type=Path), metavar="PUBLIC.pem", help="The signer's public key, from where you trust it.")
@click.option("--signature", type=click.Path(path_type=Path), metavar="FILE", help="The signature. [default: DIR/model.sig]")
def command(directory: Path, key: Path, signature: Path | None) -> int:
    """Check that the files in DIR are those that were signed with that key. Exit status 3 if not, naming the files."""
    from slimline.report.finished import SIGNATURE
    from slimline.trust.signing import verify

    verify(directory, key, signature or directory / SIGNATURE)
    click.echo(f"{directory}: every file is as it was signed.")
    return 0
