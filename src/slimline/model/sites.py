"""Every place where a decision can be taken, and what cannot be compressed."""

from __future__ import annotations

import math

from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import Refusal, Site
from slimline.model.blocks import find_block_sites
from slimline.model.coupling import find_channel_sites
from slimline.model.folding import fold_norms
from slimline.model.inputs import find_input_sites
from slimline.model.traced import Traced

SMALLEST = 64  # elements: below, a weight's scales cost more than its bits save


def find_sites(model: nn.Module, example: Samples) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The model as a whole, input, block, channel and weight sites, in that order, and the refusals with their reasons.

    The whole is a site where it has at least two blocks or sets of channels.

    Raises:
        ModelError: the model cannot be exported.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
        >>> [s.id for s in find_sites(net, Samples.of(torch.zeros(2, 16)))[0]]
        ['#input.0', '0#channels', '0.weight', '2.weight']
    """
    traced = Traced(model, example)
    inputs, immovable = find_input_sites(model, example, traced)
    blocks, needed = find_block_sites(model, example, traced)
    channels, refusals = find_channel_sites(model, example, traced)
    program = traced.program
    fold_norms(program.module)  # in place: nobody reads it after this
    weights, small = [], []
    for use in program.weights.values():
        site = Site(id=use.parameter, kind="weight", op=use.op, shape=use.shape)
        if math.prod(use.shape) < SMALLEST:
            small.append(Refusal(where=use.parameter, reason=f"{math.prod(use.shape)} elements: too few to be worth a decision"))
        else:
            weights.append(site)
    read = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"} - set(program.weights) - {u.bias for u in program.weights.values()}
    others = [
        Refusal(where=name, reason="a parameter outside any layer: it stays in float32") for name in sorted(read) if program.parameter(name).numel() > SMALLEST
    ]
    parts = (*blocks, *channels)
    whole = (Site(id="#model", kind="model", op="model", shape=(len(parts),), parts=parts),) if len(parts) > 1 else ()
    return (*whole, *inputs, *blocks, *channels, *weights), (*immovable, *needed, *refusals, *small, *others)
