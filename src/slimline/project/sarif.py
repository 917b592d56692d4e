"""Findings as SARIF 2.1.0, for code scanning: what does not pass, at its line of the project file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimline import __version__
from slimline.project.gate import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"fail": "error", "inconclusive": "warning"}


def sarif(found: Sequence[Finding], file: Path) -> str:
    """``file``: the project file, relative to the repository where it can be."""
    rules = sorted({f.title for f in found})
    content: dict[str, Any] = {
        "$schema": SCHEMA, "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "slimline", "semanticVersion": __version__, "rules": [{"id": _id(r), "shortDescription": {"text": f"The {r}."}} for r in rules]}},
            "results": [_result(f, file, rules) for f in found if f.outcome != "pass"],
        }],
    }  # fmt: skip
    return json.dumps(content, indent=2) + "\n"


def _id(title: str) -> str:
    return title.replace(" ", "-")


def _result(f: Finding, file: Path, rules: list[str]) -> dict[str, Any]:
    place = {"physicalLocation": {"artifactLocation": {"uri": file.as_posix()}, "region": {"startLine": f.line}}, "logicalLocations": [{"name": f.artefact}]}
    return {
        "ruleId": _id(f.title), "ruleIndex": rules.index(f.title), "level": LEVELS[f.outcome], "message": {"text": f"{f.artefact}: {f.sentence}"}, "locations": [place],
        "partialFingerprints": {"slimline/v1": hashlib.sha256(f"{f.artefact}\n{f.title}".encode()).hexdigest()[:32]}, "properties": {"outcome": f.outcome},
    }  # fmt: skip
