"""Make what is out of date, as make and dvc do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slimline.core.result import Report
from slimline.errors import SlimlineError, UsageError
from slimline.project.file import Item, Project
from slimline.project.inputs import OUTPUTS, Made, decisions_digest, inputs_of, opened_files, sha256, stale
from slimline.project.lock import Lock, artefact_files, result_of
from slimline.report.write import MACHINE
from slimline.store.private import private

STARTED = Path(".slimline", "started")  # under the results' folder: what each run was begun with
FAILED = ".failed"  # and, beside that, what stopped it
Compress = Callable[[Mapping[str, Any]], Report]
"""A compression with the options of ``slimline compress``; ``plan``: the JSON of one to carry out."""


def pending(project: Project, items: Sequence[Item], *, replay: bool = False, force: bool = False) -> dict[str, str]:
    """Name -> why it must be made; empty text where it is up to date. With ``replay``, a plan other than the lock's is out of date.

    Raises:
        UsageError: ``replay``, and an artefact that the lock does not have; a file that the project file names is not there.
    """
    project.check_files(items)
    lock = Lock.read(project.lock) if replay else Lock()
    missing = [i.name for i in items if replay and i.name not in lock.artefacts]
    if missing:
        raise UsageError(f"{project.lock} has no plan for {', '.join(missing)}.", hint="Search with `slimline run`, then `slimline accept`.")
    found = {}
    for item in items:
        made = Made.read(item.out)
        why = stale(item, made)
        if not why and made is not None and replay and made.decisions != decisions_digest(lock.artefacts[item.name].plan):
            why = "its plan is not the lock's"
        found[item.name] = why or ("--force" if force else "")
    return found


def make(
    project: Project, item: Item, compress: Compress, *, replay: bool = False, force: bool = False, read_before: Sequence[Path] = ()
) -> tuple[Made, list[Path]]:
    """Compress one artefact, going on with an interrupted run of the same inputs unless ``force``; returns its record and the project's files that were read.

    ``read_before``: files that an earlier artefact of the same process read, and that may since be in a cache.
    """
    plan = Lock.read(project.lock).artefacts[item.name].plan if replay else None
    mark = f"{inputs_of(item).digest} {decisions_digest(plan) if plan is not None else ''}"
    started, failed = _started(project, item), _started(project, item, FAILED)
    resume = not force and _interrupted(item.out, started, mark)
    private(started.parent)
    started.write_text(mark)
    failed.unlink(missing_ok=True)
    options = item.options() | {"resume": resume, "force": not resume, "plan": plan}
    with opened_files(project.root, project.root / project.file.out) as opened:
        try:
            report = compress(options)
        except SlimlineError as error:
            failed.write_text(str(error))
            raise
    files = sorted({*opened, *read_before})
    packages = [name for name in report.environment if name not in (*MACHINE, "python")]
    _, written = result_of(item.out)
    artefact = artefact_files(item.out, report.artefact.file) if report.artefact is not None else {}
    made = Made(
        inputs=inputs_of(item, packages=packages, opened=files), decisions=decisions_digest(written), outputs=artefact | {name: sha256(item.out / name) for name in OUTPUTS},
        verdict=report.verdict, sentence=report.sentence, interrupted=report.interrupted, replayed=replay,
    )  # fmt: skip
    made.write(item.out)
    return made, files


def failure(project: Project, item: Item) -> str:
    """What stopped the last run of an artefact; empty if nothing did."""
    path = _started(project, item, FAILED)
    return path.read_text() if path.is_file() else ""


def _started(project: Project, item: Item, suffix: str = "") -> Path:
    return project.root / project.file.out / STARTED / (item.name.replace("/", "+") + suffix)


def _interrupted(out: Path, started: Path, mark: str) -> bool:
    """Whether ``out`` holds a run of the same inputs that was cut off."""
    made = Made.read(out)
    finished = made is not None and not made.interrupted
    return started.is_file() and started.read_text() == mark and (out / ".slimline" / "journal.jsonl").exists() and not finished
