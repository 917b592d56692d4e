"""The command line: argv -> job -> exit code. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import errno
import json
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import click

from slimline import __version__
from slimline.errors import BudgetNotMet, OutputError, SlimlineError, TargetNotInstalled, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from slimline.core.contracts import Artifact
    from slimline.core.request import Request
    from slimline.core.result import Report
    from slimline.core.samples import Samples
    from slimline.core.trial import Latency
    from slimline.sources.task_file import TaskFile

DEFECT, USAGE, INTERRUPTED = 1, 2, 130
EXIT_OF_VERDICT = {"pass": 0, "fail": 3, "inconclusive": 4}
DEVICES = ("host",)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
ELEMENT_TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names of what numpy and torch call otherwise


@dataclass(frozen=True)
class Invocation:
    """When the command began, and what was typed."""

    started: float
    command: str


def _read_by(parser: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that has a function of ``core.budget`` read the option; it is imported when it is used."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        from slimline.core import budget

        if value is None:
            return None
        try:
            return budget.Drop.parse(value) if parser == "drop" else getattr(budget, f"parse_{parser}")(value)
        except UsageError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return read


def _quantity(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from slimline.core.budget import QUANTITIES

    if value not in QUANTITIES:
        raise click.BadParameter(f"{value!r} is none of {', '.join(QUANTITIES)}.", ctx, param)
    return value


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (value or "").split(",") if name.strip()))


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that takes a model has."""
    for option in reversed(
        (
            click.argument("model", metavar="MODEL"),
            click.option("--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors", help="A state dict to load into the model."),
            click.option("--data", type=click.Path(path_type=Path), metavar="FILE.py", help="Take data, metric, loss and example from another file."),
            click.option(
                "--metric",
                default="",
                metavar="NAME",
                help="A built-in metric instead of the task's own: top1, top5, precision, recall, f1, auroc, neg_mse, cosine.",
            ),
            click.option("--target", "targets", multiple=True, metavar="NAME", help="The runtime to compress for (onnxruntime)."),
            click.option("--device", default="host", show_default=True, metavar="NAME", help="A device profile."),
            click.option("--methods", callback=_names, metavar="A,B", help="Only these methods; `slimline methods` lists them."),
            click.option("--without", callback=_names, metavar="A,B", help="Never these methods."),
            click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call when latency is measured."),
            click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The runtime's threads in every measurement."),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        )
    ):
        command = option(command)
    return command


def _budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--max-size", "size_bytes", metavar="SIZE", callback=_read_by("bytes"), help="Bytes of the artefact: 300KB, 1.5MB; KB = 1,000, KiB = 1,024."
            ),
            click.option("--max-download", "download_bytes", metavar="SIZE", callback=_read_by("bytes"), help="Bytes to download."),
            click.option(
                "--max-memory", "memory_bytes", metavar="SIZE", callback=_read_by("bytes"), help="Weights as loaded plus the peak of live activations."
            ),
            click.option("--max-latency", "latency_ms", metavar="TIME", callback=_read_by("milliseconds"), help="Median time of one call: 2ms, 800us."),
            click.option("--max-macs", "macs", metavar="COUNT", callback=_read_by("count"), help="Multiply-adds per sample: 10M."),
            click.option(
                "--max-drop",
                metavar="DROP",
                callback=_read_by("drop"),
                default="1%",
                show_default=True,
                help="Quality that may be lost: 1% or 0.01 in metric units, 2%rel of the original's.",
            ),
            click.option(
                "--minimize",
                metavar="QUANTITY",
                callback=_quantity,
                default="latency",
                show_default=True,
                help="What to minimise within the limits: size, download, latency, memory, macs.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="slimline")
def command_line() -> None:
    """Make a trained model smaller and faster, and prove what it still can do.

    \b
    slimline compress TASK.py --max-drop 1% --time 10m --out build/
    slimline explain build/
    """


@command_line.command()
@_model_options
@_budget_options
@click.option("--time", "seconds", metavar="TIME", callback=_read_by("seconds"), default="10m", show_default=True, help="Wall clock of the whole command.")
@click.option("--strategy", default="allocate", show_default=True, metavar="NAME", help="How candidates are chosen.")
@click.option("--references", type=click.Choice(["full"]), help="Give every reference the recovery that the finalist had, after --time.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build"), show_default=True, metavar="DIR", help="Where the artefact and the report go.")
@click.option("--resume", is_flag=True, help="Go on with an earlier run in --out; the time already spent counts.")
@click.option("--force", is_flag=True, help="Overwrite --out.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--json", "as_json", is_flag=True, help="The report alone on standard output, everything else on standard error.")
@click.option("--quiet", is_flag=True, help="No progress; only the verdict.")
@click.pass_obj
def compress(invocation: Invocation, /, as_json: bool, quiet: bool, **options: Any) -> int:
    """Compress MODEL, a task file: FILE.py, or FILE.py:function.

    \b
    Exit status: 0 pass; 2 something to mend; 3 a budget is missed;
    4 not enough samples to certify the drop; 5 the target is not installed; 130 interrupted.
    """
    if options["resume"] and options["force"]:
        raise UsageError("--resume goes on with what is in --out, --force throws it away.", hint="Give one of them.")
    if options["out"].exists() and not options["out"].is_dir():
        raise OutputError(f"--out {options['out']} is a file.", hint="Name a folder.")
    with _reserved_stdout(as_json) as stdout:
        source = _task(options)
        request = _request(invocation, source, options)
        with _written(request.out):
            report = _run(source, request, _console(as_json), quiet)
        if report is None:  # a dry run has said all that there is
            return 0
        if as_json:
            from slimline.report.json import dumps

            click.echo(dumps(report), file=stdout)
    return INTERRUPTED if report.interrupted else EXIT_OF_VERDICT[report.verdict]


def _run(source: TaskFile, request: Request, console: Console, quiet: bool) -> Report | None:
    from slimline.core.progress import Silent
    from slimline.job import compress_request
    from slimline.report.terminal import LiveProgress, print_verdict

    if quiet:
        report: Report | None = compress_request(source, request, Silent())
        if report is not None:
            console.print(report.sentence, highlight=False, soft_wrap=True)
        return report
    with LiveProgress(console) as progress:
        report = compress_request(source, request, progress)
    if report is not None:
        print_verdict(report, request.out, console)
    return report


@command_line.command()
@_model_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def analyze(invocation: Invocation, /, as_json: bool, **options: Any) -> int:
    """Show where MODEL can be compressed, what is offered there, and what cannot be touched and why."""
    with _reserved_stdout(as_json) as stdout:
        source = _task(options)
        request = _request(invocation, source, options)
        from slimline.job import analyze as analyze_model

        found: Any = analyze_model(source, request)
    if as_json:
        found = {"lines": str(found).splitlines()} if isinstance(found, str) else found
        click.echo(found.model_dump_json(indent=2) if hasattr(found, "model_dump_json") else json.dumps(found, indent=2), file=stdout)
    else:
        click.echo(str(found), file=stdout)
    return 0


@command_line.command()
@click.argument("artefact", type=click.Path(path_type=Path), metavar="ARTEFACT")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FILE.py", help="Gives data(split), and metric if there is one.")
@click.option("--metric", default="", metavar="NAME", help="A built-in metric.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call when latency is measured.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The runtime's threads.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def measure(artefact: Path, data: Path, metric: str, batch: int, threads: int, as_json: bool) -> int:
    """Measure ARTEFACT, a model file or the folder that holds it, in its runtime and on any data."""
    with _reserved_stdout(as_json) as stdout:
        from slimline.sources.task_file import TaskFile

        _check_metric(metric)
        figures = _figures(artefact, TaskFile.load(str(data), metric=metric), batch, threads)
        click.echo(json.dumps(figures, indent=2) if as_json else _as_lines(figures), file=stdout)
    return 0


@command_line.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
def explain(directory: Path) -> int:
    """Say for every part of the model in DIR what was decided, and why."""
    if not (directory / "report.json").is_file():
        raise UsageError(f"There is no report in {directory}.", hint="Give the --out folder of an earlier `slimline compress`.")
    from slimline.report.terminal import explain as explain_report

    explain_report(directory, _console(False))
    return 0


@command_line.command()
def methods() -> int:
    """List the methods: what each does, at which stage, and its paper."""
    from slimline.core.registry import registered

    rows = [(name, method.stage, method.summary, method.reference) for name, method in registered("methods").items()]
    _table(("method", "stage", "what it does", "source"), rows)
    return 0


@command_line.command()
def targets() -> int:
    """List the runtimes, and which are installed."""
    from slimline.core.registry import registered

    rows = [
        (name, target.version() if target.installed() else "not installed", "" if target.installed() else target.install)
        for name, target in registered("targets").items()
    ]
    _table(("target", "version", "to install"), rows)
    return 0


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    _console(False).print(table)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _task(options: dict[str, Any]) -> TaskFile:
    """The model and task, after the options that need neither were checked."""
    _check_metric(options["metric"])
    _check_names(options)
    from slimline.sources.task_file import TaskFile
    from slimline.trust.loading import load_weights

    weights = None if options["weights"] is None else load_weights(options["weights"])
    return TaskFile.load(options["model"], weights=weights, data=options["data"], metric=options["metric"])


def _check_metric(name: str) -> None:
    if name:
        from slimline.measure.quality import named

        named(name)


def _check_names(options: dict[str, Any]) -> None:
    from slimline.core.registry import find

    _target(options["targets"])
    if options["device"] not in DEVICES:
        raise UsageError(f"There is no device {options['device']!r}.", hint=f"Known: {', '.join(DEVICES)}.")
    for name in (*options["methods"], *options["without"]):
        find("methods", name)
    if "keep" in options["without"]:
        raise UsageError("--without keep: leaving a part as it is cannot be forbidden.", hint="Leave keep out.")
    if "strategy" in options:
        find("strategies", options["strategy"])


def _request(invocation: Invocation, source: TaskFile, options: dict[str, Any]) -> Request:
    from slimline.core.budget import Budget
    from slimline.core.request import Request

    limits = {k: options[k] for k in ("size_bytes", "download_bytes", "memory_bytes", "latency_ms", "macs", "max_drop", "minimize") if k in options}
    same = {
        k: options[k] for k in ("device", "methods", "without", "metric", "seed", "strategy", "seconds", "out", "resume", "force", "dry_run") if k in options
    }
    return Request(
        target=_target(options["targets"]),
        budget=Budget(**limits, batch=options["batch"], threads=options["threads"]),
        references_full=options.get("references") == "full",
        model_name=source.name,
        command=invocation.command,
        started=invocation.started,
        **same,
    )


def _target(names: tuple[str, ...]) -> str:
    from slimline.core.registry import find
    from slimline.core.request import Request

    chosen = list(dict.fromkeys(names)) or [Request().target]
    for name in chosen:
        target = find("targets", name)
        if not target.installed():
            raise TargetNotInstalled(f"The target {name} is not installed.", hint=f"Install it with: {target.install}")
    if len(chosen) > 1:
        raise UsageError(
            f"--target was given {len(chosen)} runtimes ({', '.join(chosen)}); one run compresses for one.",
            hint="Run the command once for each, with an --out of its own.",
        )
    return chosen[0]


@contextlib.contextmanager
def _reserved_stdout(reserved: bool) -> Iterator[TextIO]:
    """Standard output, for the result alone if ``reserved``: what anything prints meanwhile goes to standard error."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if reserved else contextlib.nullcontext():
        yield stdout


@contextlib.contextmanager
def _written(out: Path) -> Iterator[None]:
    """A full or locked disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in DISK_FULL:
            raise OutputError(
                f"The disk is full{where}: {out} could not be written.",
                hint="Free some space, or name another place with --out and TMPDIR, then go on with --resume.",
            ) from error
        if (
            error.errno in NOT_WRITABLE
            and error.filename
            and Path(out).resolve() in (Path(str(error.filename)).resolve(), *Path(str(error.filename)).resolve().parents)
        ):
            raise OutputError(f"{out} cannot be written{where}: {error.strerror}.", hint="Name another folder with --out.") from error
        raise


def _figures(path: Path, task: TaskFile, batch: int, threads: int) -> dict[str, Any]:
    """Everything that can be measured of an artefact with nothing but its file and data."""
    from slimline.measure.fresh import run_fresh
    from slimline.measure.quality import default, evaluate, named
    from slimline.measure.size import download_bytes
    from slimline.sources.validate import check_labels

    file, artifact, target = _opened(path)
    split = next((s for s in ("holdout", "search") if task.given(s) is not None), None)
    samples = None if split is None else task.given(split)
    if samples is None:
        raise UsageError(f"{task.path} gives neither holdout nor search samples.", hint="Let data('holdout') return (inputs, targets).")
    _check_inputs(file, target.session(artifact), samples, artifact)
    outputs, rss_bytes = run_fresh(file, artifact.inputs, samples, threads=threads)
    tree = _as_the_model_gives(outputs, task)
    targets = samples.targets if samples.targets is not None else _original_outputs(task, samples)
    check_labels(tree, targets, str(split))
    metric = (
        (task.metric_name, task.metric)
        if task.has_metric
        else (task.metric_name, named(task.metric_name))
        if task.metric_name
        else default(tree, samples.targets)
    )
    quality, _ = evaluate(metric[1], tree, targets)
    latency: Latency = target.latency([artifact], samples[:1], batch=batch, threads=threads)[0]
    download, codec = download_bytes(artifact.payload)
    return {
        "file": str(file), "target": artifact.target, "size_bytes": artifact.size_bytes, "download_bytes": download, "download_codec": codec,
        "memory_bytes": target.memory(artifact, samples[:batch]), "rss_bytes": rss_bytes, "latency_ms": latency.model_dump(),
        "quality": quality, "metric": metric[0], "split": split, "samples": len(samples),
    }  # fmt: skip


def _opened(path: Path) -> tuple[Path, Artifact, Any]:
    """The file, its artefact and its runtime, by the suffix."""
    from dataclasses import replace

    from slimline.core.contracts import Artifact
    from slimline.core.registry import registered

    known = {target.suffix: target for target in registered("targets").values()}
    file = next((path / f"model{s}" for s in known if (path / f"model{s}").is_file()), None) if path.is_dir() else path
    if file is None or not file.is_file():
        raise UsageError(
            f"There is no model in {path}." if path.is_dir() else f"The artefact {path} does not exist.",
            hint=f"Give a file ({', '.join(known)}), or the --out folder of `slimline compress`.",
        )
    if file.suffix not in known:
        raise UsageError(f"No target runs a {file.suffix or 'suffixless'} file ({file}).", hint=f"Known: {', '.join(known)}.")
    kind = known[file.suffix]
    if not kind.installed():
        raise TargetNotInstalled(f"The target {kind.name} is not installed.", hint=f"Install it with: {kind.install}")
    target = kind()
    artifact = Artifact(kind.name, kind.suffix, file.read_bytes(), (), ())
    try:
        session = target.session(artifact)
    except Exception as error:  # the runtime's own exception types are many; all mean that it refuses the file
        raise UsageError(
            f"{kind.name} refuses {file}: {' '.join(str(error).split())[:300]}", hint="The file is damaged, or made for another version."
        ) from error
    return file, replace(artifact, inputs=tuple(i.name for i in session.get_inputs()), outputs=tuple(o.name for o in session.get_outputs())), target


def _check_inputs(file: Path, session: Any, samples: Samples, artifact: Artifact) -> None:
    """The data has the inputs that the file wants, each of the right type and shape."""
    free = [n for n in artifact.inputs if n not in samples.kwargs]
    given = dict(zip(free, samples.args, strict=False)) | samples.kwargs
    if set(given) != set(artifact.inputs) or len(samples.args) > len(free):
        raise UsageError(
            f"{file} takes the inputs {', '.join(artifact.inputs)}, the data gives {len(samples.tensors)}: {', '.join(samples.kwargs) or 'by position'}.",
            hint="Return the same inputs as when it was compressed.",
        )
    for wanted in session.get_inputs():
        tensor, kind = given[wanted.name], wanted.type.removeprefix("tensor(").removesuffix(")")
        kind, ours = ELEMENT_TYPES.get(kind, kind), str(tensor.dtype).removeprefix("torch.")
        shape = [len(samples) if not isinstance(d, int) and i == 0 else d for i, d in enumerate(wanted.shape)]
        fits = len(shape) == tensor.ndim and all(not isinstance(d, int) or i == 0 or d == tensor.shape[i] for i, d in enumerate(shape))
        if kind != ours or not fits:
            raise UsageError(
                f"{file} takes {wanted.name} as {kind} {['N', *shape[1:]]}, the data gives {ours} {['N', *tensor.shape[1:]]}.".replace("'", ""),
                hint="Return inputs as when it was compressed.",
            )


def _as_the_model_gives(outputs: tuple[Any, ...], task: TaskFile) -> Any:
    """The artefact's flat outputs in the structure that the user's metric knows: the model's own if the file has one."""
    if task.has_metric and task.has_model:
        import torch
        from torch.utils import _pytree

        example = task.example()
        with torch.no_grad():
            leaves, structure = _pytree.tree_flatten(task.model()(*example.args, **example.kwargs))
        if len(leaves) == len(outputs):
            return _pytree.tree_unflatten(list(outputs), structure)
    return outputs[0] if len(outputs) == 1 else outputs


def _original_outputs(task: TaskFile, samples: Samples) -> Any:
    """Where there are no labels, the original's outputs take their place."""
    if not task.has_model:
        raise UsageError(f"{task.path} gives no targets and no model() to compare with.", hint="Return (inputs, targets), or define model() there too.")
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        parts = [_pytree.tree_flatten(task.model()(*b.args, **b.kwargs)) for b in samples.batches(256)]
    return _pytree.tree_unflatten([torch.cat(column) for column in zip(*(leaves for leaves, _ in parts), strict=True)], parts[0][1])


def _as_lines(figures: dict[str, Any]) -> str:
    latency = figures["latency_ms"]
    return "\n".join((
        f"{figures['file']}, in {figures['target']}",
        f"  size      {figures['size_bytes']:,} bytes ({figures['download_bytes']:,} to download, {figures['download_codec']})",
        f"  memory    {figures['memory_bytes']:,} bytes (the process: {figures['rss_bytes']:,})",
        f"  latency   {latency['median']:.3f} ms median, {latency['p95']:.3f} ms p95 ({latency['runs']} runs, batch {latency['batch']}, threads {latency['threads']})",
        f"  quality   {figures['quality']:.4f} {figures['metric']} on {figures['samples']:,} {figures['split']} samples",
    ))  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; nothing but the status and the text on standard error tells of a failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    invocation = Invocation(time.monotonic(), shlex.join(["slimline", *arguments]))
    try:
        with _terminable():
            return int(command_line.main(args=arguments, prog_name="slimline", standalone_mode=False, obj=invocation) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "slimline"
        return _say(f"Error: {error.format_message()} `{command} --help` lists the options.", USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _say("Interrupted.", INTERRUPTED)
    except BudgetNotMet as error:
        return _say(f"Verdict: fail. {error}", error.exit_code)
    except SlimlineError as error:
        return _say(f"Error: {error}", error.exit_code)
    except OSError as error:
        if error.errno in DISK_FULL:
            return _say(f"Error: The disk is full ({error.filename or tempfile.gettempdir()}). Free some space, or name another place with TMPDIR.", USAGE)
        return _defect(error)
    except Exception as error:  # noqa: BLE001  # the last resort: becomes a record with its traceback
        return _defect(error)


def _say(text: str, status: int) -> int:
    """One paragraph on standard error."""
    click.echo(" ".join(text.split()), err=True)
    return status


def _defect(error: BaseException) -> int:
    text = "".join(traceback.format_exception(error))
    summary = f"Error: {type(error).__name__}: {str(error)[:300]}. This is a defect of Slimline's, not of your model."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="slimline-defect-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"slimline {__version__}\n{text}")
    except OSError:
        click.echo(text, err=True)
        return _say(summary, DEFECT)
    return _say(f"{summary} The traceback is in {file.name}; please report it with the command.", DEFECT)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """A polite kill is an interrupt: what is best so far gets written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
