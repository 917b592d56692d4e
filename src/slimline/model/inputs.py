"""Inputs of a model where something can be decided: features that can be left out, images that can be smaller."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.model.coupling import find_feature_members
from slimline.model.entry import feature_dims, prepend
from slimline.model.trace import traced

SMALLEST_SIDE = 8


def find_input_sites(model: nn.Module, example: Samples, graph: fx.GraphModule | None = None) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """Floating-point inputs whose features can be dropped (``members``) or whose height and width may change (``resizable``).

    Features lie along the last dimension of ``[N, F]`` and ``[N, T, F]``, or else along the second one. What reads
    them is found as for channels, and a copy without the first feature has been tried. An image ``[N, C, H, W]`` is resizable if the model
    runs at half its height and width and gives outputs of the same shape. ``graph``: the traced model, if it is at hand.

    Raises:
        ModelError: the model cannot be exported.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> (site,), _ = find_input_sites(net, Samples.of(torch.zeros(2, 6)))
        >>> site.id, site.shape, [(m.parameter, m.dim) for m in site.members]
        ('#input.0', (1, 6), [('#input.0', 1), ('0.weight', 1)])
    """
    samples = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
    sites: list[Site] = []
    refusals: list[Refusal] = []
    for number, value in enumerate(samples.tensors):
        if not value.is_floating_point():
            continue
        name = f"{INPUT}{number}"
        members: tuple[Member, ...] = ()
        reasons: list[str] = []
        for dim in feature_dims(value):
            graph = graph if graph is not None else traced(model, samples)
            members, reason = find_feature_members(graph, model, samples, name, dim)
            if members:
                break
            reasons.append(reason)
        if reasons and not members:
            refusals.append(Refusal(where=f"{name} features", reason=reasons[0]))
        resizable = False
        if value.ndim == 4 and min(value.shape[2:]) >= SMALLEST_SIDE:
            reason = _fault_at_half_size(model, name, value, samples)
            resizable = not reason
            if reason:
                refusals.append(Refusal(where=f"{name} resolution", reason=reason))
        if members or resizable:
            sites.append(Site(id=name, kind="input", op="input", shape=(1, *value.shape[1:]), members=members, resizable=resizable))
    return tuple(sites), tuple(refusals)


class Halved(nn.Module):
    """An image ``[N, C, H, W]`` at half its height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 2)


def _fault_at_half_size(model: nn.Module, name: str, value: torch.Tensor, samples: Samples) -> str:
    """Why the model does not run on images of half the size, or nothing."""
    trial = copy.deepcopy(model)
    prepend(trial, name, Halved())
    try:
        shapes = [_shapes(m, samples) for m in (model, trial)]
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises on a smaller image is the reason
        lines = str(error).strip().splitlines()
        return f"the model's code fixes the size of its images: {lines[0] if lines else type(error).__name__}"
    return "" if shapes[0] == shapes[1] else "its outputs change their shape with the size of its images"


def _shapes(model: nn.Module, samples: Samples) -> Sequence[torch.Size]:
    with torch.no_grad():
        return [t.shape for t in _pytree.tree_leaves(model(*samples.args, **samples.kwargs)) if isinstance(t, torch.Tensor)]
