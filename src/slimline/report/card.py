"""A model card for the Hugging Face hub: what the artefact is, what was measured of it, and what was not.

References:
    Mitchell et al., "Model cards for model reporting", FAT* 2019.
    https://huggingface.co/docs/hub/model-cards (the metadata block).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from slimline.core.result import Report
from slimline.report import rows
from slimline.report.finished import CARD_MARK, Finished
from slimline.report.markdown import cell, code, fence, table_lines

TAGS = {"onnxruntime": "onnx", "openvino": "openvino", "torch": "pytorch", "litert": "tflite", "litert-micro": "tflite", "executorch": "executorch"}
METRICS = {"top1": "accuracy"}  # names that the hub has for the same thing
USE = {
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession({file!r})
outputs = session.run(None, {{session.get_inputs()[0].name: inputs}})  # inputs: a numpy array
""",
    "openvino": """import openvino

config = {{"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}
model = openvino.Core().compile_model({file!r}, "CPU", config)
outputs = model(inputs)  # inputs: a numpy array
""",
    "torch": """import torch

model = torch.export.load({file!r}).module()
outputs = model(inputs)
""",
    "litert": """from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter({file!r})
interpreter.allocate_tensors()
""",
    "executorch": """from executorch.runtime import Runtime

method = Runtime.get().load_program({file!r}).load_method("forward")
outputs = method.execute([inputs])  # inputs: a torch tensor of up to 16 samples
""",
}


def render(run: Finished, *, license: str = "", base_model: str = "", task: str = "") -> str:
    """``README.md`` with its metadata block, from the report and the manifest.

    ``license``, ``base_model`` (a model on the hub) and ``task`` (a pipeline tag: ``image-classification``) are what no run knows.
    """
    report = run.report
    block = yaml.safe_dump(metadata(report, license=license, base_model=base_model, task=task), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{block}---\n\n{CARD_MARK}\n\n{_body(run, license)}"


def metadata(report: Report, *, license: str = "", base_model: str = "", task: str = "") -> dict[str, Any]:
    """The metadata block. Results are those of the artefact in its runtime."""
    found: dict[str, Any] = {}
    if license:
        found["license"] = license
    if base_model:
        found["base_model"] = base_model
        if any(d.bits is not None and d.bits < 32 for d in report.decisions):
            found["base_model_relation"] = "quantized"
    if task:
        found["pipeline_tag"] = task
    tag = TAGS.get(report.target)
    found["tags"] = ["slimline", "compressed", *([tag] if tag else [])]
    quality = report.compressed.quality if report.compressed is not None else None
    if quality is not None:
        metric = METRICS.get(report.metric, report.metric)
        samples = f"{report.drop.samples} holdout samples" if report.drop is not None else "samples of the task"
        found["metrics"] = [metric]
        found["model-index"] = [
            {
                "name": report.model,
                "results": [
                    {
                        "task": {"type": task or "other"},
                        "dataset": {"name": f"{samples} of {report.model}", "type": "holdout"},
                        "metrics": [{"type": metric, "value": round(quality, 6), "name": report.metric}],
                    }
                ],
            }
        ]
    return found


def _body(run: Finished, license: str) -> str:
    report = run.report
    parts = [f"# {cell(report.model)}, compressed", "", cell(report.sentence), ""]
    parts += [
        f"Compressed for {cell(report.target)} by Slimline. The figures are of the file below, loaded and run in its runtime on the machine named at the end. {rows.timing_words(report)}",
        "",
    ]
    if report.verdict != "pass":
        parts += [f"**The verdict is `{report.verdict}`.** Read what stood in the way before you use it.", ""]
    parts += [
        *table_lines(*rows.summary(report)),
        "",
        cell(rows.download_words(report)),
        "",
        "## How sure this is",
        "",
        cell(rows.certificate_words(report)),
        "",
    ]
    if report.artefact is not None and report.target in USE:
        parts += ["## Use", "", "```python", USE[report.target].format(file=report.artefact.file).rstrip(), "```", ""]
    changed = Counter(d.method for d in report.decisions if d.method != "keep")
    parts += ["## What was done", ""]
    parts += [f"- {code(name)} at {count} of {len(report.decisions)} places" for name, count in changed.most_common()] or ["- nothing was changed"]
    parts += ["", "`report.html` gives the reason of every decision, and what else was considered."]
    parts += [
        "",
        "## Limitations",
        "",
        "Compression keeps what the metric above measures on samples like those it was measured on. What a model loses elsewhere (rare classes, other data) is not seen in one number.",
    ]
    aside, worst = rows.elsewhere(report)
    if aside:
        parts += ["", f"**{cell(aside)}**", *(["", *table_lines(*worst)] if worst[1] else [])]
    parts += ["", *(f"- not checked: {cell(n)}" for n in report.not_checked), *(f"- in the way: {cell(o)}" for o in report.obstacles)]
    if not license:
        parts += ["- no license was named for this file; that of the original holds"]
    command = fence(report.command, 3)
    made = ", ".join(f"{cell(k)} {cell(v)}" for k, v in report.environment.items())
    parts += ["", "## How it was made", "", command, report.command, command, "", f"Seed {report.seed}; {made}.", ""]
    parts += ["## Files", "", *table_lines(("file", "sha256"), [(name, digest) for name, digest in run.files.items()])]
    return "\n".join(parts) + "\n"
