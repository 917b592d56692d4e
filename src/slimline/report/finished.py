"""A finished run as it lies in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimline.core.data import checked
from slimline.core.result import Report
from slimline.errors import ModelError, UsageError

CARD, BILL, SIGNATURE = "README.md", "bom.cdx.json", "model.sig"
CARD_MARK = "<!-- written by slimline card -->"


@dataclass(frozen=True)
class Finished:
    """``manifest``: what ``manifest.json`` holds (``files``, ``versions``, ``machine``, ``seed``, ``command``)."""

    directory: Path
    report: Report
    manifest: dict[str, Any]

    @property
    def files(self) -> dict[str, str]:
        """sha256 by file name."""
        return dict(self.manifest["files"])

    @classmethod
    def read(cls, directory: Path) -> Finished:
        """Report and manifest; no other file is opened.

        Raises:
            UsageError: there is no finished run in the folder, or it is of another version.
        """
        return cls(directory, read_report(directory), read_manifest(directory))

    def check(self) -> None:
        """Compare every file with the manifest.

        Raises:
            UsageError: one is missing or another than the run wrote.
        """
        for name, digest in self.files.items():
            if not (self.directory / name).is_file():
                raise UsageError(f"{self.directory / name} is missing, which the run wrote.", hint="Restore the folder, or run again.")
            _as_written(self.directory / name, digest)


def added(directory: Path) -> set[str]:
    """Names of what the commands ``card``, ``bom`` and ``sign`` wrote beside a run's own files; a README.md of the user's is none."""
    return {name for name in (CARD, BILL, SIGNATURE) if (directory / name).is_file() and (name != CARD or is_card(directory / name))}


def is_card(file: Path) -> bool:
    """Whether ``slimline card`` wrote it."""
    return CARD_MARK in file.read_text(encoding="utf-8", errors="replace")


def read_report(directory: Path) -> Report:
    """The report of a run.

    Raises:
        UsageError: there is none, it is of another version, or of several targets, which are named.
    """
    file = directory / "report.json"
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content, dict) and "runs" in content:
            names = [str(directory / str(r.get("target"))) for r in content["runs"]]
            raise UsageError(f"{directory} holds a run for several targets.", hint=f"Give one of them: {', '.join(names)}.")
        with checked(f"{file} is not a report of this version", "Run again with this version."):
            return Report.model_validate(content)
    except FileNotFoundError as error:
        raise UsageError(f"There is no finished run in {directory}.", hint="Give the --out folder of `slimline compress`.") from error
    except ValueError as error:
        raise UsageError(f"{file} is not a report: {error}.", hint="Run again, or restore the folder.") from error


def read_manifest(directory: Path) -> dict[str, Any]:
    """What ``manifest.json`` holds.

    Raises:
        UsageError: there is none, or it holds something else.
    """
    file = directory / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"There is no finished run in {directory}.", hint="Give the --out folder of `slimline compress`.") from error
    except ValueError as error:
        raise UsageError(f"{file} is not a manifest: {error}.", hint="Run again, or restore the folder.") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise UsageError(f"{file} is not a manifest.", hint="Run again, or restore the folder.")
    return manifest


def read_run(directory: Path, files: Sequence[str]) -> dict[str, bytes]:
    """These files of a finished run, each as the run wrote it.

    Raises:
        UsageError: there is no finished run.
        ModelError: a file has changed.
    """
    missing = [n for n in (*files, "manifest.json") if not (directory / n).is_file()]
    if missing:
        raise UsageError(f"There is no finished run in {directory} ({', '.join(missing)} is missing).", hint="Give the --out folder of `slimline compress`.")
    digests = read_manifest(directory)["files"]
    return {name: _as_written(directory / name, digests.get(name)) for name in files}


def _as_written(file: Path, digest: str | None) -> bytes:
    """The content of a file that is as the manifest has it."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ModelError(f"{file} is not the file that the run wrote (its digest differs from manifest.json).", hint="Restore it, or run again.")
    return content
