"""``slimline diff``: two results side by side."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._invocation import table
from slimline.commands._options import project_option


@click.command()
@click.argument("a")
@click.argument("b")
@project_option
def command(a: str, b: str, file: Path) -> int:
    """Compare two results, plan and figures.

    Each is a run's folder, MODEL/TARGET/BUDGET of the project, or lock:MODEL/TARGET/BUDGET for what was accepted.
    """
    from slimline.project.difference import caveats, decisions, figures, read_result
    from slimline.project.file import Project

    first, second = (read_result(name, lambda: Project.load(file)) for name in (a, b))
    click.echo(f"first:  {first.name}\nsecond: {second.name}\n")
    table(("", "first", "second", "second against first"), figures(first, second))
    changed = decisions(first, second)
    click.echo()
    if changed:
        click.echo(f"{len(changed)} site{'s are' if len(changed) != 1 else ' is'} decided otherwise")
        table(("site", "first", "second"), changed)
    else:
        click.echo("Every site is decided alike.")
    for text in caveats(first, second):
        click.echo(f"\n{text}")
    return 0
