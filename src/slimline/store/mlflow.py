"""A finished run in MLflow: parameters, metrics, its files, and the model in its flavour where MLflow has one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimline.core.extras import require
from slimline.core.result import Report
from slimline.errors import OutputError

DIGEST = "slimline.report"  # the tag by which a run that was logged before is known
FOLDER = "slimline"  # where a run's files go among its artefacts
QUANTITIES = ("size_bytes", "download_bytes", "memory_bytes", "parameters", "macs", "quality")


@dataclass(frozen=True)
class Logged:
    """``new``: whether it was logged now; else an earlier run with the same report was found. ``flavour``: of the model, or ``""``."""

    run: str
    experiment: str
    store: str
    new: bool
    flavour: str


def log(report: Report, directory: Path, files: Sequence[str], *, to: str = "", experiment: str = "", again: bool = False) -> Logged:
    """Log a run. ``files``: names in ``directory``. ``to``: an MLflow tracking URI; empty: MLflow's own (``MLFLOW_TRACKING_URI``, else the current folder).

    MLflow's usage statistics are switched off for this process: nothing is sent anywhere but to ``to``.

    Raises:
        UsageError: MLflow is not installed.
        OutputError: the store cannot be reached.
    """
    require("mlflow", "mlflow", "slimline log")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    import mlflow
    from mlflow.exceptions import MlflowException

    if to:
        mlflow.set_tracking_uri(to)
    store, name = mlflow.get_tracking_uri(), experiment or report.model
    digest = hashlib.sha256((directory / "report.json").read_bytes()).hexdigest()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints links and advice
            mlflow.set_experiment(name)
            earlier = [] if again else mlflow.search_runs(experiment_names=[name], filter_string=f"tags.`{DIGEST}` = '{digest}'", output_format="list")
            if earlier:
                return Logged(earlier[0].info.run_id, name, store, False, "")
            with mlflow.start_run(run_name=f"{report.model} for {report.target}") as run:
                mlflow.set_tags(
                    {DIGEST: digest, "slimline.version": report.slimline, "slimline.verdict": report.verdict, "mlflow.note.content": report.sentence}
                )
                mlflow.log_params(parameters(report))
                mlflow.log_metrics(metrics(report))
                for file in files:
                    mlflow.log_artifact(str(directory / file), FOLDER)
                flavour = _log_model(report, directory)
    except MlflowException as error:
        raise OutputError(
            f"MLflow at {store}: {' '.join(str(error).split())[:600]}",
            hint="Check the tracking URI, and that the server runs; `slimline log DIR --to URI` logs a finished run.",
        ) from error
    return Logged(run.info.run_id, name, store, True, flavour)


def parameters(report: Report) -> dict[str, str]:
    """What was asked for and what was decided, flat."""
    found: dict[str, Any] = {n: getattr(report, n) for n in ("model", "target", "device", "metric", "minimize", "seed", "command")}
    found |= _flat("budget", report.budget)
    found |= {
        "schedule.seconds": report.schedule.seconds,
        "schedule.candidates": report.schedule.candidates,
        "schedule.recovery_steps": report.schedule.recovery_steps,
    }
    found |= {f"decisions.{name}": n for name, n in sorted(Counter(d.method for d in report.decisions).items())}
    plan = next((p.plan for p in report.pareto if p.chosen), "")
    found |= {"plan": plan} if plan else {}
    found |= {f"environment.{k}": v for k, v in report.environment.items()}
    return {k: str(v)[:6000] for k, v in found.items() if v is not None and v != ""}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {k: v for name, inner in value.items() for k, v in _flat(f"{prefix}.{name}", inner).items()}


def metrics(report: Report) -> dict[str, float]:
    """Every measured figure, in the report's own units; a latency that is an estimate is called that."""
    found: dict[str, float | None] = {}
    sides = {"original": report.baseline, "compressed": report.compressed, **{f"reference.{_named(n)}": r for n, r in report.references.items()}}
    for name, measured in sides.items():
        if measured is not None:
            found |= {f"{name}.{q}": getattr(measured, q) for q in QUANTITIES}
            timed = measured.latency_ms
            found |= (
                {f"{name}.latency_ms_estimate": timed.median} if timed.estimated else {f"{name}.latency_ms": timed.median, f"{name}.latency_ms_p95": timed.p95}
            )
    estimated = report.baseline.latency_ms.estimated
    found |= {f"ratio.{k}{'_estimate' if estimated and k == 'latency_ms' else ''}": v for k, v in report.ratio.items()}
    if report.drop is not None:
        found |= {f"drop.{n}": getattr(report.drop, n) for n in ("observed", "lower_95", "upper_95", "allowed", "samples")}
    for name, close in (("agreement", report.agreement), ("fidelity", report.fidelity)):
        if close is not None:
            found |= {f"{name}.{n}": getattr(close, n) for n in ("top1", "cosine", "max_abs")}
    found["predictions.rank_correlation"] = report.predictions.rank_correlation
    return {k: float(v) for k, v in found.items() if v is not None}


def _named(text: str) -> str:
    """Only what a metric's name may hold."""
    return "".join(c if c.isalnum() or c in "_-./" else "_" for c in text)


def _log_model(report: Report, directory: Path) -> str:
    """The artefact as an MLflow model, where MLflow has a flavour for its kind."""
    if report.artefact is None or report.target != "onnxruntime":
        return ""
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = onnx.load(directory / report.artefact.file)

    def schema(values: Any) -> Any:
        specs = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else -1 for d in tensor.shape.dim)
            specs.append(TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name))
        return Schema(specs)

    version = report.environment.get("onnxruntime", "")
    mlflow.onnx.log_model(
        model, name="model", save_as_external_data=False, onnx_execution_providers=["CPUExecutionProvider"],
        signature=ModelSignature(inputs=schema(model.graph.input), outputs=schema(model.graph.output)), pip_requirements=[f"onnxruntime=={version}" if version else "onnxruntime", "onnx"],
    )  # fmt: skip
    return "onnx"
