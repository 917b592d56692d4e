"""A finished run as it lies in its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from slimline.core.result import Report
from slimline.errors import UsageError

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
        report_file, manifest_file = directory / "report.json", directory / "manifest.json"
        try:
            content = json.loads(report_file.read_bytes())
            if isinstance(content, dict) and "runs" in content:
                names = [str(r.get("target")) for r in content["runs"]]
                raise UsageError(f"{directory} holds a run for several targets.", hint=f"Give one of them: {', '.join(str(directory / n) for n in names)}.")
            report, manifest = Report.model_validate(content), json.loads(manifest_file.read_bytes())
        except FileNotFoundError as error:
            raise UsageError(f"There is no finished run in {directory}.", hint="Give the --out folder of `slimline compress`.") from error
        except (pydantic.ValidationError, ValueError) as error:
            raise UsageError(f"{directory} is not a run of this version.", hint="Run again with this version.") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise UsageError(f"{manifest_file} is not a manifest.", hint="Run again, or restore the folder.")
        return cls(directory, report, manifest)

    def check(self) -> None:
        """Compare every file with the manifest.

        Raises:
            UsageError: one is missing or another than the run wrote.
        """
        for name, digest in self.files.items():
            file = self.directory / name
            if not file.is_file():
                raise UsageError(f"{file} is missing, which the run wrote.", hint="Restore the folder, or run again.")
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise UsageError(f"{file} is not the file that the run wrote (its digest differs from manifest.json).", hint="Restore it, or run again.")


def added(directory: Path) -> set[str]:
    """Names of what the commands ``card``, ``bom`` and ``sign`` wrote beside a run's own files; a README.md of the user's is none."""
    return {name for name in (CARD, BILL, SIGNATURE) if (directory / name).is_file() and (name != CARD or is_card(directory / name))}


def is_card(file: Path) -> bool:
    """Whether ``slimline card`` wrote it."""
    return CARD_MARK in file.read_text(encoding="utf-8", errors="replace")
