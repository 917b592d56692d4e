"""What compression changed for single samples and classes, for the model's certainty, and under mild disturbances."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import UsageError
from slimline.project.lock import result_of

if TYPE_CHECKING:
    from slimline.measure.classes import ClassDrop
    from slimline.sources.task_file import TaskFile

CLASSES_SHOWN, SAMPLES_SHOWN = 10, 20


@dataclass(frozen=True)
class CloseUp:
    """The original and the artefact on the holdout. ``lost``, ``won``: indices of samples that only the one, and only the other gets right (scores of 0 and 1).

    ``calibration``: expected calibration error before and after. ``disturbed``: name -> quality before and after; ``""`` is undisturbed.
    """

    metric: str
    samples: int
    lost: tuple[int, ...]
    won: tuple[int, ...]
    classes: tuple[ClassDrop, ...]
    calibration: tuple[float, float] | None
    disturbed: dict[str, tuple[float, float]]


def close_up(directory: Path, task: TaskFile) -> CloseUp:
    """Run both on the task's holdout samples, plain and disturbed.

    Raises:
        UsageError: no finished run, or no holdout samples.
    """
    import torch

    from slimline.core.contracts import Artifact
    from slimline.job.context import as_outputs
    from slimline.measure.calibration import calibration_error
    from slimline.measure.corruptions import corruptions
    from slimline.measure.quality import METRICS, default, evaluate, named
    from slimline.model import recover
    from slimline.project.evidence import class_drops_of

    report, _ = result_of(directory)
    samples = task.data("holdout")
    if report.artefact is None or samples is None:
        raise UsageError("There is no artefact." if report.artefact is None else f"{task.path} gives no holdout samples.", hint="A close-up needs both.")
    target = find("targets", report.target)()
    artifact = target.opened(Artifact.read(target.name, directory / report.artefact.file, target.beside))

    def both(inputs: Samples) -> tuple[object, object]:
        original = recover.evaluate(task.model(), inputs)
        return original, as_outputs(target.run(artifact, inputs), original)

    original, compressed = both(samples)
    metric = task.metric if task.has_metric else named(report.metric) if report.metric in METRICS else default(original, samples.targets)[1]
    truth = samples.targets if samples.targets is not None else original
    (before, a), (after, b) = (evaluate(metric, o, truth) for o in (original, compressed))
    disturbed = {"": (before, after)}
    for name, change in corruptions(samples.tensors[0]).items():
        pair = both(samples.map(change))
        disturbed[name] = (evaluate(metric, pair[0], truth)[0], evaluate(metric, pair[1], truth)[0])
    binary = a is not None and b is not None and set(torch.cat([a, b]).tolist()) <= {0.0, 1.0}
    lost = tuple((a > b).nonzero().flatten().tolist()) if binary and a is not None and b is not None else ()
    won = tuple((b > a).nonzero().flatten().tolist()) if binary and a is not None and b is not None else ()
    calibration = None
    if isinstance(original, torch.Tensor) and isinstance(compressed, torch.Tensor) and isinstance(samples.targets, torch.Tensor):
        labels = samples.targets
        if original.ndim == 2 and original.shape[1] > 1 and labels.ndim == 1 and not labels.is_floating_point():
            calibration = (calibration_error(original, labels), calibration_error(compressed, labels))
    classes = class_drops_of(a, b, truth) if a is not None and b is not None else ()
    return CloseUp(report.metric, len(samples), lost, won, classes, calibration, disturbed)


def lines(seen: CloseUp) -> list[str]:
    """For a terminal."""
    quality = seen.disturbed[""]
    said = [f"{seen.metric} on {seen.samples:,} holdout samples: {quality[0]:.4f} before, {quality[1]:.4f} after"]
    if seen.lost or seen.won:
        shown = ", ".join(map(str, seen.lost[:SAMPLES_SHOWN])) + (f" and {len(seen.lost) - SAMPLES_SHOWN:,} more" if len(seen.lost) > SAMPLES_SHOWN else "")
        said.append(f"lost: {len(seen.lost):,} samples that the original gets right ({shown or 'none'}); won: {len(seen.won):,}")
    if seen.classes:
        worst = sorted(seen.classes, key=lambda d: -d.observed)[:CLASSES_SHOWN]
        said.append(f"the {len(worst)} of {len(seen.classes)} classes that lost most (points; lower limits hold for all classes together, at 95 %):")
        said += [f"  class {d.label}: {100 * d.observed:.1f} on {d.samples:,} samples, {100 * d.lower:.1f} to {100 * d.upper:.1f}" for d in worst]
    if seen.calibration is not None:
        said.append(f"calibration error (ECE): {seen.calibration[0]:.4f} before, {seen.calibration[1]:.4f} after")
    for name, (before, after) in seen.disturbed.items():
        if name:
            more = (before - after) - (quality[0] - quality[1])
            said.append(
                f"with {name}: {before:.4f} before, {after:.4f} after ({100 * abs(more):.2f} points {'more' if more > 0 else 'less'} lost than without)"
            )
    return said
