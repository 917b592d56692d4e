"""Inputs of a model where something can be decided: features that can be left out, images that can be smaller, texts that can be shorter."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.model.coupling import find_feature_members
from slimline.model.entry import Crop, Trim, feature_dims, prepend
from slimline.model.texts import texts_in
from slimline.model.traced import Traced, equivalent, outputs_of

SMALLEST_SIDE = 8


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
    """Texts that may be shorter, named after their ids; ``mask`` is set where cutting their padding changes nothing."""
    texts = texts_in(traced.samples)
    if texts is None:
        return (), ()
    shape = (1, *traced.samples.tensors[int(texts.ids.removeprefix(INPUT))].shape[1:])
    crop = Crop(shape[1] // 2, texts.padded)
    reason = _fault_with(traced, [((name,), crop) for name in texts.inputs], "the length of its sequences")
    if reason:
        return (), (Refusal(where=f"{texts.ids} length", reason=reason),)
    site = Site(id=texts.ids, kind="input", op="input", shape=shape, tokens=texts.inputs, padded=texts.padded, mask=texts.mask, padding=texts.padding)
    if not texts.mask:
        reason = "no input says what is padding: none is a mask of zeros and ones, and the example's first text is not filled up"
    else:
        trim = Trim(shape[1], texts.padded, texts.padding, texts.inputs.index(texts.mask))
        reason = _fault_with(traced, [(texts.inputs, trim)], "the length of its sequences", same=True)
    return ((site.model_copy(update={"mask": ""}),), (Refusal(where=f"{site.id} padding", reason=reason),)) if reason else ((site,), ())


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
