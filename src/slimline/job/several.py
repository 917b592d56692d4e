"""One model for several runtimes: a search for each, and what does not depend on the runtime is done once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slimline.core.progress import Progress
from slimline.core.registry import find
from slimline.core.request import Request
from slimline.core.result import Comparison, Report, Stopped
from slimline.errors import OutputError, SlimlineError, UsageError
from slimline.job import compress_request
from slimline.job.context import STATE, Source, check_directory
from slimline.report.finished import Finished
from slimline.report.write import write_comparison
from slimline.store.journal import FILE
from slimline.store.private import private


def compress_several(source: Source, request: Request, targets: Sequence[str], progress: Callable[[str], Progress]) -> Comparison:
    """``request`` for each of ``targets``, in ``request.out / TARGET``; then ``report.json``, ``.md`` and ``.html`` that compare them.

    Each gets an equal part of the time. Data are loaded once; losses of options and trained structures are measured once, in a cache that
    all share; what is chosen is each runtime's own. A target that stops with an error is recorded, and the others go on.

    ``progress``: the display of one target's run.

    Raises:
        SlimlineError: the output folder cannot be used, or a target is not installed.
    """
    for name in targets:
        find("targets", name).require()
    _prepare(request, targets)
    runs: list[Report] = []
    stopped: list[Stopped] = []
    for place, name in enumerate(targets):
        out = request.out / name
        finished = _finished(out) if request.resume else None
        if finished is not None:
            runs.append(finished)
            continue
        begun = (out / STATE / FILE).exists()
        own = request.model_copy(
            update={
                "target": name,
                "out": out,
                "shared": request.out,
                "seconds": request.seconds / len(targets),
                "resume": request.resume and begun,
                "started": request.started if place == 0 else time.monotonic(),
            }
        )
        try:
            report = compress_request(source, own, progress(name))
        except SlimlineError as error:
            stopped.append(Stopped(target=name, error=str(error), exit_code=error.exit_code))
            continue
        except KeyboardInterrupt:  # before this target has anything to deliver
            if runs:
                write_comparison(request.out, Comparison(runs=tuple(runs), stopped=tuple(stopped)))
            raise
        assert report is not None
        runs.append(report)
        if report.interrupted:
            break
    comparison = Comparison(runs=tuple(runs), stopped=tuple(stopped))
    write_comparison(request.out, comparison)
    return comparison


def _prepare(request: Request, targets: Sequence[str]) -> None:
    out = request.out
    if request.resume:
        if not any((out / name / STATE / FILE).exists() for name in targets):
            raise UsageError(f"There is no run for {' or '.join(targets)} to resume in {out}.", hint="Leave --resume out.")
        return
    if request.force and out.is_dir():
        foreign = sorted({p.name for p in out.iterdir()} - {*targets, STATE, "report.json", "report.md", "report.html"})
        if foreign and not (out / STATE).exists():
            raise OutputError(f"{out} holds {', '.join(foreign[:3])}, which Slimline did not make.", hint="Give another --out.")
    check_directory(request)
    private(out / STATE)


def _finished(out: Path) -> Report | None:
    """The report of a run that came to its end."""
    if not (out / "report.json").is_file() or not (out / "manifest.json").is_file():
        return None
    report = Finished.read(out).report
    return None if report.interrupted else report
