"""Texts of different lengths: whether the runtime can cut each batch's padding, and which text stands for all."""

from __future__ import annotations

import torch
from torch.utils import _pytree

from slimline.core.contracts import varies
from slimline.core.samples import Samples
from slimline.core.site import INPUT, Refusal, Site
from slimline.errors import SlimlineError
from slimline.job.context import Job
from slimline.methods.sequence_length import SequenceLength
from slimline.model.apply import apply_structure
from slimline.model.program import Program
from slimline.model.traced import equivalent

TRIED = 8  # texts that a runtime must answer as the model does


def lengths_left_open(job: Job, sites: tuple[Site, ...]) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The sites; padding is no longer known at those whose runtime cannot cut it at every call, with the reason. Where it can, the job's usual and longest text are chosen.

    It is tried: the model is lowered with nothing but its padding cut, and run on texts of different lengths.
    """
    site = next((s for s in sites if s.mask), None)
    if site is None:
        return sites, ()
    reason = "" if SequenceLength.name in job.methods else "sequence_length is not among the methods"
    reason = reason or ("" if varies(job.target) else f"{job.target.name} takes fixed shapes alone")
    usual, longest = usual_text(site, job.texts, job.request.budget.batch), usual_text(site, job.texts, len(job.texts))
    reason = reason or _fault(job, site, usual)
    if reason:
        return tuple(s.model_copy(update={"mask": ""}) if s is site else s for s in sites), (Refusal(where=f"{site.id} padding", reason=reason),)
    job.usual, job.longest = usual, longest
    return sites, ()


def _fault(job: Job, site: Site, usual: Samples) -> str:
    """Why the runtime does not cut padding as the model does without, or nothing."""
    few = job.texts[:TRIED].without_targets()
    try:
        trimmed = apply_structure(job.model, SequenceLength(side=site.padded, trim=True).rewrite(job.model, site, None))
        artifact = job.target.lower(Program.export(trimmed, usual), usual)
        got = job.target.run(artifact, few, batch=2)
    except SlimlineError as error:
        return f"{job.target.name} does not run the model with shapes that depend on it: {error.message[:200]}"
    with torch.inference_mode():
        expected = [t for t in _pytree.tree_leaves(job.model(*few.args, **few.kwargs)) if isinstance(t, torch.Tensor)]
    return "" if equivalent(got, expected) else f"{job.target.name} gives other outputs where it is cut"


def lengths(site: Site, samples: Samples) -> torch.Tensor:
    """Positions up to the last that is no padding, of every sample ``[N]``.

    Example:
        >>> site = Site(id="#input.0", kind="input", op="input", shape=(1, 4), tokens=("#input.0",), mask="#input.0")
        >>> lengths(site, Samples.of(torch.tensor([[7, 7, 0, 0], [7, 0, 7, 0]]))).tolist()
        [2, 3]
    """
    there = samples.tensors[int(site.mask.removeprefix(INPUT))] != site.padding
    places = torch.arange(1, there.shape[1] + 1)
    return (there * (places if site.padded == "end" else places.flip(0))).amax(1)


def usual_text(site: Site, samples: Samples, batch: int) -> Samples:
    """Twice the sample whose length the longest of ``batch`` has on average: the ``batch / (batch + 1)`` quantile of all lengths, so one text stands for a whole batch.

    Example:
        >>> site = Site(id="#input.0", kind="input", op="input", shape=(1, 4), tokens=("#input.0",), mask="#input.0")
        >>> usual_text(site, Samples.of(torch.tensor([[7, 7, 7, 7], [7, 0, 0, 0], [7, 7, 0, 0]])), 1).tensors[0].tolist()
        [[7, 7, 0, 0], [7, 7, 0, 0]]
    """
    found = lengths(site, samples)
    place = int(found.argsort(stable=True)[min(round(len(found) * batch / (batch + 1) - 0.5), len(found) - 1)])
    return samples[torch.tensor([place, place])].without_targets()
