"""Batch norms folded into the layers before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from slimline.model.operations import NORMS, groups_of, weight_arguments


def fold_norms(module: fx.GraphModule) -> None:
    """Fold every batch norm (in eval mode) that alone consumes a convolution or linear layer.

    ``w' = w * g``, ``b' = (b - mean) * g + beta`` with ``g = gamma / sqrt(var + eps)``.

    References:
        Jacob et al., CVPR 2018, section 3.2, eq. 14.
    """
    graph = module.graph

    def read(node: Any) -> torch.Tensor | None:
        if not isinstance(node, fx.Node):
            return None
        owner, _, leaf = str(node.target).rpartition(".")
        value: torch.Tensor = getattr(module.get_submodule(owner), leaf)
        return value.detach()

    for norm in [n for n in graph.nodes if n.op == "call_function" and n.target in NORMS]:
        layer = norm.args[0]
        found = list(weight_arguments(layer)) if isinstance(layer, fx.Node) else []
        if len(found) != 1 or len(layer.users) != 1 or found[0][1].op != "get_attr" or len(found[0][1].users) != 1:
            continue
        op, weight, bias = found[0]
        if norm.args[5] or (bias is not None and len(bias.users) != 1):  # training, or a bias that another layer reads too
            continue
        w, mean, var = read(weight), read(norm.args[3]), read(norm.args[4])
        if w is None or mean is None or var is None:
            continue
        gamma, beta = read(norm.args[1]), read(norm.args[2])
        g = (gamma if gamma is not None else torch.ones_like(mean)) * torch.rsqrt(var + norm.args[7])
        b = read(bias) if bias is not None else torch.zeros_like(mean)
        assert b is not None
        shift = (b - mean) * g + (beta if beta is not None else 0.0)
        groups = groups_of(layer)
        if op.startswith("conv_transpose"):
            scaled = (w.unflatten(0, (groups, -1)) * g.reshape(groups, 1, -1, *[1] * (w.ndim - 2))).flatten(0, 1)
        else:
            scaled = w * g.reshape(-1, *[1] * (w.ndim - 1))
        owner, _, leaf = str(weight.target).rpartition(".")
        home = module.get_submodule(owner)
        setattr(home, leaf, nn.Parameter(scaled))
        name = str(bias.target).rpartition(".")[2] if bias is not None else "bias"
        if bias is None:
            if getattr(home, name, None) is None and name in home._parameters:
                del home._parameters[name]
            home.register_parameter(name, nn.Parameter(shift))
            with graph.inserting_before(next(iter(graph.nodes))):
                bias = graph.get_attr(f"{owner}.{name}" if owner else name)
            layer.args = (*layer.args[:2], bias, *layer.args[3:])
        else:
            setattr(home, name, nn.Parameter(shift))
        norm.replace_all_uses_with(layer)
        graph.erase_node(norm)
    graph.eliminate_dead_code()
    module.recompile()
