from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from slimline import cli

pytestmark = pytest.mark.skipif(importlib.util.find_spec("cyclonedx") is None, reason="slimline[bom] is not installed")


def made(run: Path) -> dict[str, Any]:
    assert cli.main(["bom", str(run)]) == 0
    found: dict[str, Any] = json.loads((run / "bom.cdx.json").read_text())
    return found


def test_the_bill_lists_every_file_with_its_digest_and_what_runs_it(run: Path) -> None:
    bom = made(run)
    files = {c["name"]: c["hashes"] for c in bom["components"] if c["type"] == "file"}
    assert set(files) == {"model.onnx", "plan.json", "report.json", "report.md", "report.html"}
    for name, hashes in files.items():
        assert hashes == [{"alg": "SHA-256", "content": hashlib.sha256((run / name).read_bytes()).hexdigest()}]
    scopes = {c["name"]: c["scope"] for c in bom["components"] if c["type"] == "library"}
    assert scopes == {"onnxruntime": "required", "torch": "excluded", "numpy": "excluded"}
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["pedigree"]["ancestors"][0]["bom-ref"] == "original"
    (needs,) = [d["dependsOn"] for d in bom["dependencies"] if d["ref"] == "model"]
    assert "pkg:onnxruntime" in needs and "pkg:torch" not in needs


def test_the_model_card_holds_the_certificate_and_what_was_not_checked(run: Path) -> None:
    card = made(run)["metadata"]["component"]["modelCard"]
    (drop,) = [m for m in card["quantitativeAnalysis"]["performanceMetrics"] if m["type"].startswith("drop of top1")]
    assert drop["value"] == "0.005" and drop["confidenceInterval"] == {"lowerBound": "-0.001", "upperBound": "0.009"} and drop["slice"] == "600 holdout samples"
    assert card["considerations"]["technicalLimitations"] == ["not checked: latency on any machine but this one"]


def test_it_is_valid_by_the_schema_and_a_wrong_one_is_found(run: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bom = made(run)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bom)) is None
    bom["metadata"]["component"]["modelCard"]["accuracy"] = "0.9"
    assert validator.validate_str(json.dumps(bom)) is not None


def test_the_same_run_at_the_same_time_gives_the_same_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = made(run)
    assert first["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00" and first == made(run)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000001")
    assert made(run)["serialNumber"] != first["serialNumber"]
