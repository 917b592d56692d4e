"""A CycloneDX bill of materials of a compressed model: its files, what made it, what runs it, and what was measured of it.

References:
    CycloneDX 1.6 (ECMA-424), component type ``machine-learning-model`` and its ``modelCard``.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from slimline.core.extras import require
from slimline.core.result import Report

RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch": "torch",
    "litert": "ai-edge-litert",
    "litert-micro": "tflite-micro",
    "executorch": "executorch",
}
MADE_BY = ("python", "slimline")  # of the manifest's versions, those that are no library


def bill(report: Report, files: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """The bill as JSON. ``files``: sha256 by name; ``versions``: by package; both from the run's manifest.

    The time is now, or ``SOURCE_DATE_EPOCH``; the serial number follows from it and the content, so the same input gives the same bytes.

    Raises:
        UsageError: the library is not installed.
    """
    require("cyclonedx", "bom", "A bill of materials")
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def digest(value: str) -> list[Any]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=value)]

    main = report.artefact
    model = Component(
        name=report.model, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="model", version=main.sha256[:12] if main else None, hashes=digest(main.sha256) if main else (),
        description=report.sentence,
        pedigree=Pedigree(
            ancestors=[Component(name=report.model, type=ComponentType.MACHINE_LEARNING_MODEL, bom_ref="original", description="the model before compression")],
            notes="compressed: " + (", ".join(f"{name} x {n}" for name, n in _methods(report).most_common()) or "nothing was changed"),
        ),
        properties=[Property(name=f"slimline:{k}", value=v) for k, v in (("verdict", report.verdict), ("target", report.target), ("device", report.device), ("seed", str(report.seed)))],
    )  # fmt: skip
    parts = [Component(name=name, type=ComponentType.FILE, bom_ref=f"file:{name}", hashes=digest(value)) for name, value in files.items()]
    runtime = RUNTIMES.get(report.target, report.target)
    packages = {n: v for n, v in versions.items() if n not in MADE_BY and v != "not installed"}
    packages.setdefault(runtime, "")
    libraries = [
        Component(
            name=name, type=ComponentType.LIBRARY, bom_ref=f"pkg:{name}", version=version or None, purl=PackageURL("pypi", None, name, version or None),
            scope=ComponentScope.REQUIRED if name == runtime else ComponentScope.EXCLUDED,
        )
        for name, version in packages.items()
    ]  # fmt: skip
    tool = Component(name="slimline", type=ComponentType.APPLICATION, bom_ref="slimline", version=report.slimline)
    made = datetime.fromtimestamp(int(epoch), UTC) if (epoch := os.environ.get("SOURCE_DATE_EPOCH")) else datetime.now(UTC)
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{made.isoformat()} {report.model_dump_json()} {sorted(files.items())}"),
        metadata=BomMetaData(component=model, timestamp=made, tools=ToolRepository(components=[tool])), components=[*parts, *libraries],
    )  # fmt: skip
    bom.register_dependency(model, [*parts, *(c for c in libraries if c.name == runtime)])
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    content["metadata"]["component"]["modelCard"] = card(report)  # the library has no class for it yet
    return _validated(json.dumps(content, indent=2, ensure_ascii=False))


def _validated(text: str) -> str:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise AssertionError(f"the bill of materials is not valid CycloneDX 1.6: {error}")
    return text


def _methods(report: Report) -> Counter[str]:
    return Counter(d.method for d in report.decisions if d.method != "keep")


def card(report: Report) -> dict[str, Any]:
    """CycloneDX's ``modelCard``: the measured figures of the artefact, and what nobody checked."""
    metrics: list[dict[str, Any]] = []
    base, result, drop = report.baseline, report.compressed, report.drop
    where = f"{drop.samples} holdout samples" if drop is not None else "the task's samples"
    if result is not None and result.quality is not None:
        metrics.append({"type": report.metric, "value": f"{result.quality:.6g}", "slice": where})
    if base.quality is not None:
        metrics.append({"type": f"{report.metric} of the original", "value": f"{base.quality:.6g}", "slice": where})
    if drop is not None:
        limits = {"lowerBound": f"{drop.lower_95:.6g}", "upperBound": f"{drop.upper_95:.6g}"}
        metrics.append(
            {"type": f"drop of {report.metric}, one-sided 95 % limits", "value": f"{drop.observed:.6g}", "slice": where, "confidenceInterval": limits}
        )
    if result is not None:
        latency = result.latency_ms
        metrics.append(
            {"type": "latency, milliseconds (median)", "value": f"{latency.median:.6g}", "slice": f"batch {latency.batch}, {latency.threads} thread(s)"}
        )
        metrics.append({"type": "size, bytes", "value": str(result.size_bytes)})
        metrics.append({"type": "memory, bytes", "value": str(result.memory_bytes)})
    return {
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "technicalLimitations": [f"not checked: {n}" for n in report.not_checked],
            "performanceTradeoffs": [report.sentence, *report.obstacles],
        },
    }
