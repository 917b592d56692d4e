"""``slimline card``: a model card for the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from slimline.core.whole import write_whole
from slimline.errors import OutputError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--license", default="", metavar="ID", help="The model's licence as the hub writes it: apache-2.0, mit.")
@click.option("--base-model", default="", metavar="OWNER/NAME", help="The original on the hub.")
@click.option("--task", default="", metavar="TAG", help="What the model is for, as the hub writes it: image-classification.")
@click.option("--force", is_flag=True, help="Replace a README.md that this command did not write.")
def command(directory: Path, license: str, base_model: str, task: str, force: bool) -> int:
    """Write DIR/README.md, a model card for the Hugging Face hub, from the report and the manifest of the run in DIR.

    Nothing is uploaded. The report names the command that was typed, the machine and its versions: read the card before you publish it.
    """
    from slimline.report.card import render
    from slimline.report.finished import CARD, Finished, is_card

    run = Finished.read(directory)
    run.check()
    file = directory / CARD
    if file.exists() and not force and not is_card(file):
        raise OutputError(f"{file} was not written by this command.", hint="Move it, or replace it with --force.")
    text = render(run, license=license, base_model=base_model, task=task)
    checked = importlib.util.find_spec("huggingface_hub") is not None
    if checked:
        from huggingface_hub import ModelCard

        ModelCard(text, ignore_metadata_errors=False)
    write_whole(file, text.encode())
    click.echo(
        f"{file}: " + ("read back with huggingface_hub" if checked else "not read back, since huggingface_hub is not installed (pip install 'slimline[hub]')")
    )
    return 0
