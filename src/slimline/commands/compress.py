"""``slimline compress``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from slimline.commands._invocation import INTERRUPTED, STATUS_OF_VERDICT, Invocation, console, reserved_stdout, waiting
from slimline.commands._logging import check_logging, log_run
from slimline.commands._options import budget_options, labels, mlflow_option, model_options, read_by, worker_options
from slimline.commands._request import carry_out, load_task, make_request, targets_of
from slimline.core.whole import written
from slimline.errors import OutputError, UsageError
from slimline.store.journal import check_free

if TYPE_CHECKING:
    from rich.console import Console

    from slimline.core.request import Request
    from slimline.sources.task_file import TaskFile

RESUME = "go on with --resume"


@click.command()
@model_options
@budget_options
@click.option("--time", "seconds", metavar="TIME", callback=read_by("seconds"), default="10m", show_default=True, help="Wall clock of the whole command.")
@click.option("--strategy", default="allocate", show_default=True, metavar="NAME", help="How candidates are chosen.")
@click.option("--classes", callback=labels, metavar="1,5,7", help="Make the plan for these labels alone; the report says what it costs on the others.")
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE.json", help="Carry out this plan (an earlier run's plan.json) instead of searching.")
@click.option("--train-device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where candidates are trained; all else stays on the CPU.")  # fmt: skip
@click.option("--references", type=click.Choice(["full"]), help="Give every reference the recovery that the finalist had, after --time.")
@worker_options
@mlflow_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"), show_default=True, metavar="DIR", help="Where the artefact and the report go.")
@click.option("--resume", is_flag=True, help="Go on with an earlier run in --out; the time already spent counts.")
@click.option("--force", is_flag=True, help="Overwrite --out.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", "as_json", is_flag=True, help="The report alone on standard output, everything else on standard error.")
@click.option("--quiet", is_flag=True, help="No progress; only the verdict.")
@click.pass_obj
def command(invocation: Invocation, /, as_json: bool, quiet: bool, mlflow: str, **options: Any) -> int:
    """Compress MODEL: a task file (FILE.py, FILE.py:function) or another tool's model with its task in --data FILE.py:

    MODEL.onnx, MODEL.keras, MODEL.h5, MODEL.pt2 or a SavedModel folder (with --trust), a Hugging Face folder, timm:NAME, torchvision:NAME (with --weights).

    \b
    Exit status: 0 pass; 2 something to mend; 3 a budget is missed;
    4 not enough samples to certify the drop; 5 the target is not installed; 130 interrupted.
    """
    if options["resume"] and options["force"]:
        raise UsageError("--resume goes on with what is in --out, --force throws it away.", hint="Give one of them.")
    if options["out"].exists() and not options["out"].is_dir():
        raise OutputError(f"--out {options['out']} is a file.", hint="Name a folder.")
    check_logging(mlflow)
    if not options["resume"] and not options["dry_run"]:
        check_free(options["out"], force=options["force"])  # before a model is trained or data are loaded
    with reserved_stdout(as_json) as stdout:
        with waiting(f"opening {options['model']}", as_json, quiet):
            source = load_task(options)
        request = make_request(invocation, source, options, several=True)
        targets = targets_of(options["targets"], options["device"])
        if len(targets) > 1 and not request.dry_run:
            with written(request.out, again=RESUME):
                return _several(source, request, targets, console(as_json), quiet, stdout if as_json else None, mlflow)
        with written(request.out, again=RESUME):
            report = carry_out(source, request, console(as_json), quiet)
        if report is None:  # a dry run has said all that there is
            return 0
        if as_json:
            from slimline.report.json import dumps

            click.echo(dumps(report), file=stdout)
        if mlflow and not report.interrupted:
            log_run(request.out, mlflow)
    return INTERRUPTED if report.interrupted else STATUS_OF_VERDICT[report.verdict]


def _several(source: TaskFile, request: Request, targets: tuple[str, ...], console: Console, quiet: bool, json_to: TextIO | None, mlflow: str) -> int:
    """A run for each target, compared; the status is the gravest of theirs."""
    import contextlib

    from slimline.core.progress import Progress, Silent
    from slimline.job.several import compress_several
    from slimline.report.json import dumps
    from slimline.report.terminal import LiveProgress, print_comparison

    with contextlib.ExitStack() as shown:

        def progress(target: str) -> Progress:
            shown.close()
            console.print(f"[bold]{target}[/]", highlight=False)
            return Silent() if quiet else shown.enter_context(LiveProgress(console))

        found = compress_several(source, request, targets, progress)
    print_comparison(found, request.out, console)
    if json_to is not None:
        click.echo(dumps(found), file=json_to)
    for run in found.runs if mlflow else ():
        if not run.interrupted:
            log_run(request.out / run.target, mlflow)
    if any(r.interrupted for r in found.runs):
        return INTERRUPTED
    statuses = [*(s.exit_code for s in found.stopped), *(STATUS_OF_VERDICT[r.verdict] for r in found.runs)]
    return next(s for s in (1, 2, 5, 3, 4, 0) if s in statuses)
