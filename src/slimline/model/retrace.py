"""Programs of models that differ from one already traced in their tensors alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.model.folding import fold_norms
from slimline.model.program import Program
from slimline.model.trace import trace

KEPT = 4  # traced models
WIDTHS = frozenset({"in_channels", "out_channels", "in_features", "out_features", "num_features"})  # attributes that no graph holds
CLOSE = 1e-4  # of the largest output: what a graph and its model may differ by


class Retrace:
    """Traces a model, or puts its tensors into the graph of one of the same modules: tracing takes seconds, most candidates differ in widths alone.

    A width that the model's code writes into the graph makes the graph fail, or give other outputs on ``example`` than the model does; then it is traced after all.
    """

    def __init__(self, example: Samples) -> None:
        self.example = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
        self._kept: OrderedDict[tuple[Any, ...], Program] = OrderedDict()

    def program(self, model: nn.Module) -> Program:
        """The program of ``model``, its batch norms folded.

        Raises:
            ModelError: it cannot be traced; the message names the line.
        """
        signature = _signature(model)
        program = self._from(self._kept[signature], model) if signature in self._kept else None
        if program is None:
            traced = Program.opened(trace(model, self.example), self.example)
            self._kept[signature] = traced
            self._kept.move_to_end(signature)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            program = traced.copy()
        fold_norms(program.module)
        return program

    def _from(self, traced: Program, model: nn.Module) -> Program | None:
        program = traced.copy()
        own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
        for name in {str(n.target) for n in program.graph.nodes if n.op == "get_attr"} & own.keys():
            owner, _, leaf = name.rpartition(".")
            module, value = program.module.get_submodule(owner), own[name].detach().clone(memory_format=torch.contiguous_format)
            if leaf in module._parameters:
                setattr(module, leaf, nn.Parameter(value, requires_grad=own[name].requires_grad))
            else:
                setattr(module, leaf, value)
        try:
            with torch.inference_mode():
                ours, theirs = program.run(self.example).outputs, _pytree.tree_leaves(model(*self.example.args, **self.example.kwargs))
        except (RuntimeError, IndexError, ValueError):  # a width is written into the graph
            return None
        pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ()
        same = [_close(a, b) for a, b in pairs if isinstance(b, torch.Tensor)]
        return program if same and all(same) else None


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b)) if not a.is_floating_point() else bool((a - b).abs().max() <= CLOSE * b.abs().max().clamp(min=1e-6))


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """Modules with their plain attributes, and tensors with their numbers of dimensions."""
    plain = (bool, int, float, str, tuple, type(None))
    modules = tuple(
        (name, type(m), tuple((k, repr(v)) for k, v in sorted(vars(m).items()) if isinstance(v, plain) and not k.startswith("_") and k not in WIDTHS))
        for name, m in model.named_modules()
    )
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    aliases: dict[int, int] = {}
    return modules, tuple((name, t.ndim, t.dtype, aliases.setdefault(id(t), len(aliases))) for name, t in tensors)
