"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from slimline.core.result import Comparison, Report
from slimline.errors import OutputError
from slimline.report import comparison, html, markdown
from slimline.report import json as report_json

MACHINE = ("machine", "processor", "cores")  # the keys of a report's environment that are no version


def write_outputs(directory: Path, report: Report, files: Mapping[str, bytes]) -> None:
    """Write ``files``, the report in three forms, and last the manifest with the sha256 of all of them.

    All are first written under temporary names beside their own; only then are they renamed. The manifest of
    an earlier run goes before the first of its files is replaced, so a manifest always describes what stands beside it.

    Raises:
        OutputError: the disk is full or the folder not writable; nothing half-written stays.
    """
    whole = {
        **files,
        "report.json": report_json.dumps(report).encode(),
        "report.md": markdown.render(report).encode(),
        "report.html": html.render(report).encode(),
    }
    manifest = {
        "files": {name: hashlib.sha256(payload).hexdigest() for name, payload in sorted(whole.items())},
        "versions": {name: value for name, value in report.environment.items() if name not in MACHINE}, "machine": {name: value for name, value in report.environment.items() if name in MACHINE},
        "seed": report.seed, "command": report.command,
    }  # fmt: skip
    whole["manifest.json"] = json.dumps(manifest, indent=2).encode()
    _replace(directory, whole)


def write_comparison(directory: Path, found: Comparison) -> None:
    """The report on several targets, in three forms.

    Raises:
        OutputError: the disk is full or the folder not writable; nothing half-written stays.
    """
    _replace(
        directory,
        {
            "report.json": report_json.dumps(found).encode(),
            "report.md": comparison.markdown(found).encode(),
            "report.html": comparison.html(found).encode(),
        },
    )


def _replace(directory: Path, whole: Mapping[str, bytes]) -> None:
    parts = {name: directory / f".{name}.part" for name in whole}
    try:
        for name, payload in whole.items():
            with parts[name].open("wb") as handle:
                handle.write(payload)
                handle.flush()
                os.fsync(handle.fileno())
        (directory / "manifest.json").unlink(missing_ok=True)
        for name in whole:  # the manifest is the last one
            os.replace(parts[name], directory / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk that holds {directory} is full: {sum(map(len, whole.values())):,} bytes are needed.",
                hint="Free some space, then run again with --resume.",
            ) from error
        raise OutputError(f"{directory} cannot be written: {error.strerror}.", hint="Check its permissions, or give another --out.") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
