"""What the result lost up close, from the outputs that certified it, and under mild disturbances where there is time."""

from __future__ import annotations

import time
from typing import Any

from slimline.core.result import CloseUp
from slimline.core.samples import Samples
from slimline.job.certificate import Outcome
from slimline.job.context import Job, as_outputs
from slimline.measure.closeup import close_up, disturbed
from slimline.model.recover import evaluate

LATEST = 1.02  # of the time budget, after which nothing more is run
SHARE = 0.02  # of the time budget that the disturbed samples may take
LEAST, MOST, PROBE = 100, 2_000, 50  # samples that are disturbed; and timed


def look_closer(job: Job, outcome: Outcome) -> CloseUp | None:
    """Of the holdout, once its certificate stands: nothing is chosen by it any more. ``None`` without data."""
    samples, original = outcome.samples, outcome.baseline_outputs
    if samples is None or outcome.outputs is None:
        return None
    source: Any = job.source
    origin = source.origin("holdout") if hasattr(source, "origin") else None
    slices = source.slices("holdout") if hasattr(source, "slices") else {}
    targets = samples.targets if samples.targets is not None else original
    found = close_up(job.metric, original, outcome.outputs, targets, slices, None if origin is None else origin.index)

    def both(inputs: Samples) -> tuple[Any, Any]:
        whole = evaluate(job.model, inputs)
        return whole, as_outputs(job.target.run(outcome.finalist.artifact, inputs, threads=2), whole)

    few = samples[: min(len(samples), PROBE)]
    start = time.monotonic()
    both(few)
    each = (time.monotonic() - start) / len(few)
    count = min(len(samples), MOST, int(SHARE * job.clock.seconds / (4 * each)))
    if count < min(LEAST, len(samples)) or job.clock.over(LATEST):
        job.note("whether the result is more sensitive to noise, blur or contrast: no time was left (slimline explain DIR --task TASK looks)")
        count = 0
    shaken = disturbed(both, job.metric, samples[:count], over=lambda: job.clock.over(LATEST)) if count else ()
    return found.model_copy(update={"split": "holdout" if origin is None else origin.split, "disturbed": shaken})
