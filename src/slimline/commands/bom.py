"""``slimline bom``: what a compressed model is made of."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.core.whole import write_whole


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def command(directory: Path) -> int:
    """Write DIR/bom.cdx.json, a CycloneDX 1.6 bill of materials (ML-BOM), from the report and the manifest of the run in DIR.

    It lists the files with their digests, the packages that made them and the one that runs them, and the measured figures. It is
    checked against the schema before it is written. SOURCE_DATE_EPOCH sets its time.
    """
    from slimline.report.finished import BILL, Finished
    from slimline.trust.inventory import bill

    run = Finished.read(directory)
    run.check()
    text = bill(run.report, run.files, run.manifest["versions"])
    write_whole(directory / BILL, text.encode())
    click.echo(f"{directory / BILL}: valid CycloneDX 1.6, {len(run.files)} files")
    return 0
