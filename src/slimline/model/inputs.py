"""Inputs of a model where something can be decided: features that can be left out, images that can be smaller, texts that can be shorter."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.model.coupling import find_feature_members
from slimline.model.entry import Crop, Trim, feature_dims, prepend
from slimline.model.traced import Traced, equivalent, outputs_of

SMALLEST_SIDE = 8
SHORTEST = 8  # positions of a sequence
FILLED = 2  # positions with the same id at an end of a text, from which on it counts as padding


def find_input_sites(model: nn.Module, example: Samples, traced: Traced | None = None) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """Floating-point inputs whose features can be dropped (``members``) or whose height and width may change (``resizable``), and tokens of which there may be fewer (``tokens``).

    Features lie along the last dimension of ``[N, F]`` and ``[N, T, F]``, or else along the second one. What reads
    them is found as for channels, and a copy without the first feature has been tried. An image ``[N, C, H, W]`` is resizable if the model
    runs at half its height and width and gives outputs of the same shape; token ids ``[N, T]``, with all inputs of that shape, can be cut if
    it does so with half of them. ``traced``: the model's graph, if it is at hand.

    Raises:
        ModelError: the model cannot be exported.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> (site,), _ = find_input_sites(net, Samples.of(torch.zeros(2, 6)))
        >>> site.id, site.shape, [(m.parameter, m.dim) for m in site.members]
        ('#input.0', (1, 6), [('#input.0', 1), ('0.weight', 1)])
    """
    traced = traced if traced is not None else Traced(model, example)
    sites: list[Site] = []
    refusals: list[Refusal] = []
    for number, value in enumerate(traced.samples.tensors):
        if not value.is_floating_point():
            continue
        name = f"{INPUT}{number}"
        members: tuple[Member, ...] = ()
        reasons: list[str] = []
        for dim in feature_dims(value):
            members, reason = find_feature_members(traced, name, dim)
            if members:
                break
            reasons.append(reason)
        if reasons and not members:
            refusals.append(Refusal(where=f"{name} features", reason=reasons[0]))
        resizable = False
        if value.ndim == 4 and min(value.shape[2:]) >= SMALLEST_SIDE:
            reason = _fault_at_half_size(traced, name)
            resizable = not reason
            if reason:
                refusals.append(Refusal(where=f"{name} resolution", reason=reason))
        if members or resizable:
            sites.append(Site(id=name, kind="input", op="input", shape=(1, *value.shape[1:]), members=members, resizable=resizable))
    texts, texts_refused = _text_site(traced)
    return (*sites, *texts), (*refusals, *texts_refused)


def _text_site(traced: Traced) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The inputs of integers ``[N, T]`` with all others of that shape; named after the one that holds most different numbers, the ids."""
    inputs = {f"{INPUT}{number}": value for number, value in enumerate(traced.samples.tensors)}
    integers = {name: v for name, v in inputs.items() if v.ndim == 2 and v.shape[1] >= SHORTEST and not v.is_floating_point()}
    if not integers:
        return (), ()
    name, ids = max(integers.items(), key=lambda item: len(item[1].unique()))
    tokens, side, shape = tuple(n for n, v in inputs.items() if v.shape == ids.shape), _padded_side(ids), (1, *ids.shape[1:])
    crop = Crop(shape[1] // 2, side)
    reason = _fault_with(traced, [((t,), crop) for t in tokens], "the length of its sequences")
    if reason:
        return (), (Refusal(where=f"{name} length", reason=reason),)
    site = Site(id=name, kind="input", op="input", shape=shape, tokens=tokens, padded=side)
    mask, padding = _mask({t: inputs[t] for t in tokens}, name, side)
    if not mask:
        return (site,), (Refusal(where=f"{name} padding", reason="no input says what is padding: none is a mask of zeros and ones, and the example's first text is not filled up"),)
    trim = Trim(shape[1], side, padding, tokens.index(mask))
    reason = _fault_with(traced, [(tokens, trim)], "the length of its sequences", same=True)
    if reason:
        return (site,), (Refusal(where=f"{name} padding", reason=reason),)
    return (site.model_copy(update={"mask": mask, "padding": padding}),), ()


def _mask(tokens: Mapping[str, torch.Tensor], ids: str, side: Literal["start", "end"]) -> tuple[str, int]:
    """Which of the inputs says what is padding, by which value: one of zeros and ones that gives every row some, the zeros on the padded side; else the ids, by what the first row is filled up with."""
    for name, value in tokens.items():
        there = value if side == "end" else value.flip(1)
        if bool(((value == 0) | (value == 1)).all() and value.any(1).all() and (there[:, 1:] <= there[:, :-1]).all()):
            return name, 0
    first = tokens[ids][0] if side == "end" else tokens[ids][0].flip(0)
    return (ids, int(first[-1])) if bool((first[-FILLED:] == first[-1]).all()) else ("", 0)


def _padded_side(tokens: torch.Tensor) -> Literal["start", "end"]:
    """Where rows of token ids repeat their outermost value for longer: at the end, if in doubt."""

    def repeated(rows: torch.Tensor) -> int:
        return int((rows == rows[:, :1]).cumprod(1).sum())

    return "start" if repeated(tokens) > repeated(tokens.flip(1)) else "end"


class Halved(nn.Module):
    """An image ``[N, C, H, W]`` at half its height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 2)


def _fault_at_half_size(traced: Traced, name: str) -> str:
    """Why the model does not run on images of half the size, or nothing."""
    return _fault_with(traced, [((name,), Halved())], "the size of its images")


def _fault_with(traced: Traced, before: Sequence[tuple[tuple[str, ...], nn.Module]], what: str, *, same: bool = False) -> str:
    """Why the model does not run with these modules before its inputs, or gives outputs of other shapes (``same``: of other values); nothing where it does neither."""
    trial = copy.deepcopy(traced.model)
    for names, module in before:
        prepend(trial, names, module)
    try:
        outputs = outputs_of(trial, traced.few)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises on a smaller input is the reason
        lines = str(error).strip().splitlines()
        return f"the model's code fixes {what}: {lines[0] if lines else type(error).__name__}"
    if [o.shape for o in outputs] != traced.shapes:
        return f"its outputs change their shape with {what}"
    if same and not equivalent(outputs, traced.outputs):
        return "its outputs change where its padding is cut"
    return ""
