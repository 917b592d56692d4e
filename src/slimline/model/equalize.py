"""Cross-layer equalization on the exported graph: what the layers compute stays, their ranges get alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from slimline.model.operations import RELU, aten, groups_of, weight_arguments
from slimline.model.program import Program, WeightUse
from slimline.numerics.equalize import equalization_scales, equalize

SWEEPS = 3  # over all pairs: a layer between two others is in two pairs
OPS = ("linear", "conv1d", "conv2d", "conv3d")
POOLS = frozenset({aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default})  # of scaled values: the scaled maximum


def equalize_pairs(program: Program) -> list[tuple[str, str]]:
    """Equalize in place wherever one layer's channels are read by one other layer alone, across a relu or max pooling at most.

    Returns the pairs of weights. A relu6 in between is no such pair: it would clip elsewhere.

    References:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1.
    """
    pairs = list(_pairs(program))
    with torch.no_grad():
        for _ in range(SWEEPS):
            for first, second, groups in pairs:
                a, b = program.parameter(first.parameter), program.parameter(second.parameter)
                bias = program.parameter(first.bias) if first.bias is not None else None
                new_a, new_bias, new_b = equalize(a, bias, b, equalization_scales(a, b, groups), groups)
                a.copy_(new_a)
                b.copy_(new_b)
                if bias is not None and new_bias is not None:
                    bias.copy_(new_bias)
    return [(first.parameter, second.parameter) for first, second, _ in pairs]


def _pairs(program: Program) -> Iterator[tuple[WeightUse, WeightUse, int]]:
    weights = program.weights
    layers = {n: str(w.target) for n in program.graph.nodes for _, w, _ in weight_arguments(n) if w.op == "get_attr"}
    biases = [use.bias for use in weights.values()]
    for node, name in layers.items():
        first = weights.get(name)
        reader = _only_reader(node)
        second = weights.get(layers.get(reader, "")) if reader is not None else None
        if first is None or second is None or reader is None or first.shared or second.shared or first.op not in OPS or second.op not in OPS:
            continue
        groups = groups_of(reader)
        if second.shape[1] * groups == first.shape[0] and (first.bias is None or biases.count(first.bias) == 1):
            yield first, second, groups


def _only_reader(node: fx.Node) -> fx.Node | None:
    """The one layer that reads a layer's values, ``None`` where anything else does."""
    while len(node.users) == 1:
        (user,) = node.users
        if any(weight_arguments(user)) and user.args[0] is node:
            return user
        if user.target not in RELU | POOLS:
            return None
        node = user
    return None
