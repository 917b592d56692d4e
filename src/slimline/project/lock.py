"""``slimline.lock``: the accepted plan, digests and measured figures of every artefact, as text that is reviewed like code."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from slimline.core.data import Data
from slimline.core.result import DropInterval, Report
from slimline.core.trial import Measurement
from slimline.core.whole import write_whole
from slimline.errors import UsageError
from slimline.project.file import Item, Project, validated
from slimline.project.inputs import Made, sha256, stale
from slimline.project.lines import read_yaml
from slimline.report.finished import read_report

HEAD = "# Written by `slimline accept`; review it like code, and change it by accepting again.\n"


class Locked(Data):
    """One accepted artefact. ``files``: sha256 by name, the main one first. ``plan``: as in ``plan.json``. ``inputs``: one digest of all that it was made of."""

    files: dict[str, str] = pydantic.Field(min_length=1)
    inputs: str
    verdict: Literal["pass", "inconclusive", "fail"]
    metric: str
    measured: Measurement
    drop: DropInterval | None = None
    plan: dict[str, Any]

    @property
    def file(self) -> str:
        """The main file's name."""
        return next(iter(self.files))


class Lock(Data):
    """The content of ``slimline.lock``, by the artefacts' names."""

    version: Literal[1] = 1
    artefacts: dict[str, Locked] = {}

    @classmethod
    def read(cls, path: Path) -> Lock:
        """An empty one where there is no file.

        Raises:
            UsageError: the file is not a lock; the message names the line.
        """
        if not path.exists():
            return cls()
        value, lines = read_yaml(path, "")
        return validated(cls, value, path, lines)

    def text(self) -> str:
        """As it is written: the same lock gives the same text, and one decision is one line or two."""
        content = {"version": self.version, "artefacts": {n: self.artefacts[n].model_dump(mode="json", exclude_none=True) for n in sorted(self.artefacts)}}
        text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)
        return HEAD + text

    def write(self, path: Path) -> None:
        """It appears whole or not at all."""
        write_whole(path, self.text().encode())


def result_of(folder: Path) -> tuple[Report, dict[str, Any]]:
    """The report and the plan (as JSON) of a finished run.

    Raises:
        UsageError: there is none, or it is of another version.
    """
    if not (folder / "report.json").is_file() or not (folder / "plan.json").is_file():
        raise UsageError(f"There is no finished run in {folder}.", hint="Make it with `slimline run`.")
    return read_report(folder), json.loads((folder / "plan.json").read_bytes())


def artefact_files(folder: Path, main: str) -> dict[str, str]:
    """sha256 of the artefact's files by name, the main one first, as the run's manifest has them."""
    files: dict[str, str] = json.loads((folder / "manifest.json").read_bytes())["files"]
    stem = main.partition(".")[0]
    return {main: files[main]} | {name: digest for name, digest in files.items() if name != main and name.partition(".")[0] == stem}


def locked_of(item: Item) -> Locked:
    """What accepting an artefact would write.

    Raises:
        UsageError: it is out of date, or nothing was delivered.
    """
    made = Made.read(item.out)
    why = stale(item, made)
    if made is None or why:
        raise UsageError(f"{item.name} is not up to date: {why}.", hint="Run `slimline run` first.")
    report, plan = result_of(item.out)
    if report.compressed is None or report.artefact is None:
        raise UsageError(f"{item.name}: nothing was delivered.", hint="Loosen its budget.")
    return Locked(
        files=artefact_files(item.out, report.artefact.file), inputs=made.inputs.digest, verdict=report.verdict, metric=report.metric,
        measured=report.compressed, drop=report.drop, plan=plan,
    )  # fmt: skip


def locked_file(project: Project, name: str, entry: Locked) -> Path | None:
    """The accepted artefact's main file; ``None`` if it, or one that belongs to it, is not there or is another one."""
    folder = project.locked / name
    whole = all((folder / file).is_file() and sha256(folder / file) == digest for file, digest in entry.files.items())
    return folder / entry.file if whole else None


def accept(project: Project, items: list[Item], *, whatever: bool = False, dry_run: bool = False) -> str:
    """Make the current artefacts the baseline, and their files its copies; returns the change of the lock as a unified diff, empty if there is none.

    ``whatever``: accept an artefact whose verdict is ``fail``, too. Artefacts that the project file no longer has leave the lock.

    Raises:
        UsageError: one is out of date or failed; then nothing is changed.
    """
    before = Lock.read(project.lock)
    entries = {}
    for item in items:
        entry = locked_of(item)
        if entry.verdict == "fail" and not whatever:
            raise UsageError(f"{item.name} failed its budget, so it is no baseline.", hint="Loosen the budget, or accept it with --force.")
        entries[item.name] = entry
    known = {i.name for i in project.items()}
    after = Lock(artefacts={n: e for n, e in (before.artefacts | entries).items() if n in known})
    old = project.lock.read_text(encoding="utf-8") if project.lock.exists() else ""
    change = "".join(difflib.unified_diff(old.splitlines(True), after.text().splitlines(True), f"a/{project.file.lock}", f"b/{project.file.lock}"))
    if not dry_run:
        for item in items:
            for file in entries[item.name].files:
                copy = project.locked / item.name / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_whole(copy, (item.out / file).read_bytes())
        after.write(project.lock)
    return change
