"""``slimline run``: make what is out of date."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slimline.commands._invocation import INTERRUPTED, STATUS_OF_VERDICT, Invocation, console
from slimline.commands._logging import check_logging, log_run
from slimline.commands._options import mlflow_option, project_option, worker_options
from slimline.commands._request import carry_out, load_task, make_request
from slimline.errors import BudgetNotMet, SlimlineError

if TYPE_CHECKING:
    from slimline.core.result import Report


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@project_option
@click.option("--replay", is_flag=True, help="Carry out the lock's plans instead of searching: for a retrained model of the same architecture.")
@click.option("--force", is_flag=True, help="Make everything again.")
@worker_options
@mlflow_option
@click.option("--dry-run", is_flag=True, help="Say what would be made and why, and stop.")
@click.option("--quiet", is_flag=True, help="No progress; only the verdicts.")
@click.pass_obj
def command(
    invocation: Invocation, /, names: tuple[str, ...], file: Path, replay: bool, force: bool, mlflow: str, dry_run: bool, quiet: bool, **workers: Any
) -> int:
    """Make the artefacts of the project file that are out of date: contents of model, data, settings and versions decide.

    NAME is MODEL/TARGET/BUDGET or the beginning of it; without one, all.

    \b
    Exit status: that of the worst verdict; as of `slimline compress`.
    """
    from slimline.project.file import Project
    from slimline.project.inputs import Made
    from slimline.project.run import make, pending

    check_logging(mlflow)
    project = Project.load(file)
    items = project.items(names)
    why = pending(project, items, replay=replay, force=force)
    out = console(False)

    def compress(options: Mapping[str, Any]) -> Report:
        asked = {**options, **workers}
        source = load_task(asked)
        report = carry_out(source, make_request(Invocation(time.monotonic(), invocation.command), source, asked), out, quiet)
        assert report is not None
        return report

    statuses, new = [], list[Path]()
    read: dict[str, list[Path]] = {}
    for item in items:
        made = Made.read(item.out)
        if made is not None and not why[item.name]:
            out.print(f"{item.name}: up to date, {made.verdict}", highlight=False, soft_wrap=True)
        elif dry_run:
            out.print(f"{item.name}: would be made: {why[item.name]}", highlight=False, soft_wrap=True)
            continue
        else:
            out.print(f"{item.name}: {why[item.name]}", highlight=False, soft_wrap=True)
            try:
                made, read[item.task] = make(project, item, compress, replay=replay, force=force, read_before=read.get(item.task, []))
            except BudgetNotMet as error:  # the other artefacts may still be made
                out.print(f"{item.name}: fail. {error}", highlight=False, markup=False, soft_wrap=True)
                statuses.append(error.exit_code)
                continue
            except SlimlineError as error:
                error.message = f"{project.path}, line {item.line}: {item.name}: {error.message}"
                raise
            if not made.interrupted:
                new.append(item.out)
        statuses.append(INTERRUPTED if made.interrupted else STATUS_OF_VERDICT[made.verdict])
        if made.interrupted:
            break
    for folder in new if mlflow else ():  # after all of the work, which no server can then undo
        log_run(folder, mlflow)
    return next((s for s in (INTERRUPTED, STATUS_OF_VERDICT["fail"], STATUS_OF_VERDICT["inconclusive"]) if s in statuses), 0)
