"""A first project file, written by looking at the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimline.report.sentence import bytes_text, count_text

if TYPE_CHECKING:
    from slimline.sources.task_file import TaskFile

SHARE = 3  # a first limit on the file: a third of the float model is what int8 nearly always reaches
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Look:
    """What was seen. ``least_class``: samples of the smallest class of the holdout, ``None`` where there are no classes."""

    parameters: int
    macs: int
    holdout: int | None
    holdout_source: str | None
    least_class: int | None


def look_at(task: TaskFile) -> Look:
    """Count parameters, multiply-adds and samples; the model is exported, not run on the data.

    Raises:
        ModelError: it cannot be exported.
    """
    import torch

    from slimline.model.program import Program
    from slimline.sources.validate import check_task

    check_task(task.model(), task)
    program = Program.export(task.model(), task.example())
    samples = task.data("holdout")
    labels = samples.targets if samples is not None else None
    classes = isinstance(labels, torch.Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    least = int(labels.unique(return_counts=True)[1].min()) if classes and labels is not None else None
    parameters = sum(t.numel() for t in program.parameters().values() if t.is_floating_point())
    return Look(parameters, program.macs(), None if samples is None else len(samples), task.holdout_source, least)


def certifiable(samples: int) -> float:
    """The smallest drop that so many samples can certify, if the two models agree on all of them: ``1 - 0.05 ** (1 / N)``.

    Example:
        >>> round(certifiable(300), 4)
        0.0099
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / samples))


def draft(name: str, task: str, look: Look, *, weights: str = "", data: str = "", metric: str = "", schema: str = "") -> str:
    """The text of ``slimline.yaml``."""
    drop = _rounded(2 * certifiable(look.holdout)) if look.holdout else 0.01
    class_drop = _rounded(1.5 * certifiable(look.least_class)) if look.least_class else None
    where = {"user": "of your own", "from_search": "taken from search", "from_train": "taken from train, which can certify nothing"}.get(
        look.holdout_source or "", ""
    )
    samples = f"{look.holdout:,} holdout samples {where}" if look.holdout else "no data: quality cannot be checked, and `slimline check` stays inconclusive"
    lines = [
        *([f"# yaml-language-server: $schema={schema}"] if schema else []),
        f"# {name}: {look.parameters:,} parameters ({bytes_text(4 * look.parameters)} as float32), {count_text(look.macs)} multiply-adds; {samples}.",
        "version: 1",
        "models:",
        f"  {name}:",
        f"    task: {task}",
        *(f"    {key}: {value}" for key, value in (("weights", weights), ("data", data), ("metric", metric)) if value),
        "    # depends: [data/**]   # files that the task reads by native code; what Python opens is seen",
        "    targets: [onnxruntime]",
        "    budgets:",
        "      small:",
        f"        max_size: {_kilobytes(4 * look.parameters / SHARE)}   # a third of the float model",
        f"        max_drop: {_percent(max(drop, 0.01))}" + (f"   # fewer than {_percent(drop)} these samples can hardly certify" if look.holdout and drop >= 0.01 else ""),
        "        minimize: size",
        "        time: 10m",
        "      fast:",
        f"        max_drop: {_percent(max(drop, 0.01))}",
        "        minimize: latency",
        "        time: 10m",
        "gate:   # what a change may cost against slimline.lock",
        "  size: 2%",
        "  latency: 10%",
        f"  drop: {_percent(max(drop, 0.01))}",
        f"  class_drop: {_percent(min(max(class_drop, 0.05), 0.49))}   # the smallest class has {look.least_class:,} holdout samples" if class_drop else "  class_drop: null   # there are no classes",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _rounded(share: float) -> float:
    """Up to the next tenth of a percent below 1 %, else to the next half percent."""
    step = 0.001 if share < 0.01 else 0.005
    return math.ceil(share / step - 1e-9) * step


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.1 else f"{100 * share:.3g}%"


def _kilobytes(count: float) -> str:
    return f"{math.ceil(count / 1e6 * 10) / 10:g}MB" if count >= 1e6 else f"{max(1, math.ceil(count / 1e3))}KB"
