"""``slimline ui``: the runs below a folder in a browser."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Anything else than this machine lets others read the reports.")
@click.option("--port", type=click.IntRange(0, 65535), default=8070, show_default=True, help="0 takes a free one.")
def command(folder: Path, host: str, port: int) -> int:
    """Show the runs below FOLDER in a browser: the front across runs, two of them side by side, every report.

    Nothing can be changed there, and nothing is written. Ctrl-C ends it.
    """
    from slimline.project.ui import LOOPBACK, Server

    server = Server(folder, host, port)
    if host not in LOOPBACK:
        click.echo("Everyone who reaches this machine can read the reports: there is no password.", err=True)
    click.echo(f"{server.address}  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("")
    finally:
        server.server_close()
    return 0
