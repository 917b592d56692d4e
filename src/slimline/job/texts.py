"""Whether the runtime can cut the padding of texts at every call."""

from __future__ import annotations

import torch
from torch.utils import _pytree

from slimline.core.contracts import varies
from slimline.core.samples import Samples
from slimline.core.site import Refusal, Site
from slimline.errors import SlimlineError
from slimline.job.context import Job
from slimline.methods.sequence_length import SequenceLength
from slimline.model.apply import apply_structure
from slimline.model.program import Program
from slimline.model.texts import MOST_TEXTS, Texts, lengths, usual
from slimline.model.traced import equivalent

TRIED = 8  # texts that a runtime must answer as the model does


def lengths_left_open(job: Job, sites: tuple[Site, ...]) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The sites; padding is no longer known at those whose runtime cannot cut it at every call, with the reason. Where it can, the job's usual and longest text are chosen.

    It is tried: the model is lowered with nothing but its padding cut, and run on texts of different lengths.
    """
    site = next((s for s in sites if s.mask), None)
    if site is None or SequenceLength.name not in job.methods:
        return sites, ()
    reason = "" if varies(job.target) else f"{job.target.name} takes fixed shapes alone"
    middle, longest = (usual(job.texts, batch, Texts.of(site)) for batch in (job.request.budget.batch, MOST_TEXTS))
    reason = reason or _fault(job, site, middle)
    if reason:
        return tuple(s.model_copy(update={"mask": ""}) if s is site else s for s in sites), (Refusal(where=f"{site.id} padding", reason=reason),)
    job.usual, job.longest = middle, longest
    usual_length, most = int(lengths(Texts.of(site), middle)[0]), site.shape[1]
    job.progress.note(
        f"padding can be cut at every call; latencies and multiply-adds are of a text of {usual_length} of {most} positions, the usual length here"
    )
    return sites, ()


def _fault(job: Job, site: Site, example: Samples) -> str:
    """Why the runtime does not cut padding as the model does without, or nothing."""
    few = job.texts[:TRIED].without_targets()
    try:
        trimmed = apply_structure(job.model, SequenceLength(side=site.padded, trim=True).rewrite(job.model, site, None))
        artifact = job.target.lower(Program.export(trimmed, example), example)
        got = job.target.run(artifact, few, batch=2)
    except SlimlineError as error:
        return f"{job.target.name} does not run the model with shapes that depend on it: {error.message[:200]}"
    with torch.inference_mode():
        expected = [t for t in _pytree.tree_leaves(job.model(*few.args, **few.kwargs)) if isinstance(t, torch.Tensor)]
    return "" if equivalent(got, expected) else f"{job.target.name} gives other outputs where it is cut"
