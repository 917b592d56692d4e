"""What compression changed up close, looked at again: on all holdout samples, plain and disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import UsageError
from slimline.project.lock import result_of

if TYPE_CHECKING:
    from slimline.core.result import CloseUp
    from slimline.sources.task_file import TaskFile

PICTURES = 24


def look_again(directory: Path, task: TaskFile) -> CloseUp:
    """Run the original and the artefact on the task's holdout samples (of the plan's classes, where it is for some only), plain and disturbed.

    Raises:
        UsageError: no finished run, or no holdout samples.
    """
    from slimline.core.contracts import Artifact
    from slimline.job.context import as_outputs
    from slimline.job.specialised import specialised
    from slimline.measure.closeup import close_up, disturbed
    from slimline.measure.quality import METRICS, chosen
    from slimline.model import recover

    report, _ = result_of(directory)
    source: Any = specialised(task, report.elsewhere.classes if report.elsewhere is not None else ())
    samples = source.data("holdout")
    if report.artefact is None or samples is None:
        raise UsageError("There is no artefact." if report.artefact is None else f"{task.path} gives no holdout samples.", hint="A close-up needs both.")
    target = find("targets", report.target)()
    artifact = target.opened(Artifact.read(target.name, directory / report.artefact.file, target.beside))

    def both(inputs: Samples) -> tuple[object, object]:
        original = recover.evaluate(task.model(), inputs)
        return original, as_outputs(target.run(artifact, inputs), original)

    original, compressed = both(samples)
    _, metric = chosen(report.metric if report.metric in METRICS else "", task, lambda: original, samples.targets)
    origin = source.origin("holdout")
    truth = samples.targets if samples.targets is not None else original
    found = close_up(metric, original, compressed, truth, source.slices("holdout"), origin.index)
    return found.model_copy(update={"split": origin.split, "disturbed": disturbed(both, metric, samples)})


def pictures(seen: CloseUp, task: TaskFile) -> dict[int, bytes]:
    """The first lost samples as PNG, by index; empty where inputs are no images ``[N, 1 or 3, H, W]``."""
    from slimline.report.closeup import png

    samples = task.given(seen.split)
    if samples is None or samples.tensors[0].ndim != 4 or samples.tensors[0].shape[1] not in (1, 3):
        return {}
    return {i: png(samples.tensors[0][i].float().numpy()) for i in seen.lost[:PICTURES]}
