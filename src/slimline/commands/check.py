"""``slimline check``: the gate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimline.commands._invocation import STATUS_OF_VERDICT, console
from slimline.commands._options import project_option
from slimline.commands._request import load_task
from slimline.core.whole import written
from slimline.errors import SlimlineError, UsageError

if TYPE_CHECKING:
    from slimline.project.file import Item
    from slimline.project.gate import Finding
    from slimline.sources.task_file import TaskFile

LAST_LINES, LAST_CHARACTERS = 3, 1_000  # of what a failed run said
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@project_option
@click.option("--quick", is_flag=True, help="Only what can be counted without running the model: bytes, memory, multiply-adds, and whether all is up to date.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE.xml", help="Write the findings as JUnit XML.")
@click.option("--sarif", type=click.Path(path_type=Path), metavar="FILE.sarif", help="Write the findings as SARIF 2.1.0.")
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE.md", help="Write the findings as Markdown.")
@click.option("--comment", is_flag=True, help="In a GitHub workflow: keep one comment on the pull request up to date.")
@click.option(
    "--failed-run", type=click.Path(path_type=Path), metavar="FILE", help="If FILE is there: what a `slimline run` that failed said; told, and never passed."
)
@click.option("--allow-inconclusive", is_flag=True, help="Exit with 0 where nothing fails, even if something cannot be decided.")
def command(
    names: tuple[str, ...],
    file: Path,
    quick: bool,
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    comment: bool,
    failed_run: Path | None,
    allow_inconclusive: bool,
) -> int:
    """Hold the artefacts against their budgets and against the lock: bytes, memory, multiply-adds, latency, quality, quality by class.

    The accepted artefact is run and timed beside the new one, so a slower machine is no regression. In a GitHub workflow, what
    does not pass is annotated at its line of the project file.

    \b
    Exit status: 0 pass; 3 something is surely worse than allowed, or an artefact
    is missing or out of date; 4 something cannot be decided with these data;
    2 something to mend; 5 the target is not installed. All are told in the files.
    """
    from slimline.project.gate import unjudged, verdict

    shown = Path(os.path.relpath(file))
    found, stopped = _judge(file, shown, names, quick)
    if failed_run is not None and failed_run.is_file():
        found.insert(0, unjudged("slimline run", f"It failed: {_last_words(failed_run)}"))
    _show(found, shown)
    _write(found, shown, junit, sarif, markdown, inconclusive_fails=not allow_inconclusive)
    if comment:
        _comment(found, shown)
    if stopped:
        raise stopped[0]
    outcome = verdict(found)
    return 0 if outcome == "inconclusive" and allow_inconclusive else STATUS_OF_VERDICT[outcome]


def _judge(file: Path, shown: Path, names: tuple[str, ...], quick: bool) -> tuple[list[Finding], list[Exception]]:
    """What is found of each artefact, and what stopped a check: a failed one itself, after which the others go on. ``shown``: the project file as findings name it."""
    from slimline.project.evidence import gather, missing
    from slimline.project.file import Project
    from slimline.project.gate import findings, unjudged
    from slimline.project.lock import Lock

    found: list[Finding] = []
    stopped: list[Exception] = []
    opened: dict[tuple[str, ...], TaskFile] = {}

    def load(item: Item) -> TaskFile:
        options = item.options()
        key = tuple(str(options[k]) for k in ("model", "weights", "data", "metric"))
        if key not in opened:
            opened[key] = load_task(options)
        return opened[key]

    @contextlib.contextmanager
    def recorded(artefact: str, line: int = 1) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised when all is told
            stopped.append(error)
            said = str(error) if isinstance(error, SlimlineError) else f"{type(error).__name__}: {error} (a defect of Slimline's)."
            found.append(unjudged(artefact, said, line))

    with recorded(shown.as_posix()):
        project = Project.load(file)
        lock, has_lock = Lock.read(project.lock), project.lock.exists()
        if not has_lock:
            click.echo(f"There is no {project.lock}: nothing to compare with but the budgets. `slimline accept` writes it.")
        for item in project.items(names):
            with recorded(item.name, item.line):
                if why := missing(project, item):
                    found.append(unjudged(item.name, why, item.line))
                else:
                    evidence = gather(project, item, lock.artefacts.get(item.name), None if quick else load)
                    found += findings(item, project.file.gate, evidence, has_lock=has_lock)
    return found, stopped


def _show(found: Sequence[Finding], shown: Path) -> None:
    """In the terminal, and as annotations where a GitHub workflow runs."""
    from rich.markup import escape

    from slimline.project import github, words
    from slimline.project.gate import verdict

    out = console(False)
    for f in found:
        out.print(f"[{COLOURS[f.outcome]}]{f.outcome:12}[/] {f.artefact}: {f.title}: {escape(f.sentence)}", highlight=False, soft_wrap=True)
    out.print(f"[bold {COLOURS[verdict(found)]}]{words.headline(found)}[/]", highlight=False, soft_wrap=True)
    if os.environ.get("GITHUB_ACTIONS") == "true" and (said := github.workflow_commands(found, shown)):
        click.echo(said)


def _write(found: Sequence[Finding], shown: Path, junit: Path | None, sarif: Path | None, markdown: Path | None, *, inconclusive_fails: bool) -> None:
    """The files that were asked for."""
    from slimline.project import words
    from slimline.project.junit import junit as as_junit
    from slimline.project.sarif import sarif as as_sarif

    texts = {
        "--junit": (junit, as_junit(found, inconclusive_fails=inconclusive_fails)),
        "--sarif": (sarif, as_sarif(found, shown)),
        "--markdown": (markdown, words.markdown(found, shown.as_posix())),
    }
    for option, (path, text) in texts.items():
        if path is not None:
            with written(path, option):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")  # which may be a pipe


def _comment(found: Sequence[Finding], shown: Path) -> None:
    """On the pull request; the verdict must not depend on whether it could be written."""
    from slimline.project import github, words

    try:
        address = github.comment(words.markdown(found, shown.as_posix()), words.marker(shown.as_posix()), os.environ)
        click.echo(f"The comment: {address}" if address else "The event is of no pull request: no comment.")
    except UsageError as error:
        click.echo(f"No comment: {error}", err=True)


def _last_words(said: Path) -> str:
    """The end of what was printed, in one line."""
    lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " ".join(" ".join(lines[-LAST_LINES:]).split())[-LAST_CHARACTERS:]
