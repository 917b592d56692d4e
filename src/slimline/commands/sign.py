"""``slimline sign``: say with a key of your own that these are the files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--key", required=True, type=click.Path(path_type=Path), metavar="PRIVATE.pem", help="An elliptic-curve private key (P-256, P-384, P-521).")
@click.option("--password", envvar="SLIMLINE_KEY_PASSWORD", hidden=True)
@click.option("--ask-password", is_flag=True, help="Ask for the key's password. Without a terminal: SLIMLINE_KEY_PASSWORD.")
@click.option("--signature", type=click.Path(path_type=Path), metavar="FILE", help="Where the signature goes. [default: DIR/model.sig]")
def command(directory: Path, key: Path, password: str | None, ask_password: bool, signature: Path | None) -> int:
    """Sign every file of the run in DIR, without any server. `slimline verify` finds a changed byte, a missing file and an added one.

    Write the card and the bill of materials before: what is added after does not verify. A folder that is not as its run left it is refused.
    """
    from slimline.report.finished import SIGNATURE, Finished
    from slimline.trust.signing import sign

    run = Finished.read(directory)
    run.check()
    if ask_password:
        password = click.prompt("Password of the key", hide_input=True)
    file = signature or directory / SIGNATURE
    sign(directory, key, file, password)
    click.echo(f"{file}: signed. Give the public key to those who verify by another way than this folder.")
    return 0
