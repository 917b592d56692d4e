"""Residual blocks that can be replaced by the identity."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.core.site import Member, Refusal, Site
from slimline.model.operations import operation_name
from slimline.model.traced import Traced, outputs_of

# What a shortcut may pass on its way: it keeps every value in its place, and has no weights but those of a norm over what is added.
SHORTCUT = frozenset(
    {
        "add",
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "dropout",
        "feature_dropout",
        "alpha_dropout",
        "alias",
        "clone",
        "contiguous",
        "detach",
        "to",
        "layer_norm",
        "rms_norm",
    }
)


class Skip(nn.Identity):
    """The identity in place of a block: it gives back its first tensor, whatever else it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))


@dataclass
class _Call:
    """How a module was called: how often, and whether its first tensor, and no other, has the shape of the one that it gave."""

    times: int = 0
    fits: bool = False
    shape: tuple[int, ...] = ()


def find_block_sites(model: nn.Module, example: Samples, traced: Traced | None = None) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """Modules with weights that an identity shortcut leads around, so that the identity can take their place; in graph order. And those that it leads around and that must stay.

    Such a module is called once and gives one tensor of the shape of its first; other inputs (masks, positions) have
    other shapes. An addition carries its input to its output with no weights on the way, but for the norms of a transformer that normalises last. Each has been tried: without it the model runs
    and its outputs keep their shapes. Of modules around the same values only the outermost is a site.
    ``traced``: the model's graph, if it is at hand.

    Raises:
        ModelError: the model cannot be exported.

    References:
        Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", NeurIPS 2016.
    """
    traced = traced if traced is not None else Traced(model, example)
    program = traced.program
    calls = _watch(model, traced.samples)
    place = {node: i for i, node in enumerate(program.graph.nodes)}
    found: dict[tuple[fx.Node, fx.Node], tuple[int, Site]] = {}
    refusals: list[Refusal] = []
    for name, module in model.named_modules():
        call = calls.get(name)
        if not name or call is None or call.times != 1 or not call.fits:
            continue
        try:
            entering, leaving = program.block_values(name)
        except KeyError:
            continue  # several values enter or leave it in the graph
        if (entering, leaving) in found or not _has_shortcut(entering, leaving):
            continue
        fault = _fault_without(traced, name)
        if fault:
            refusals.append(Refusal(where=f"{name}#block", reason=fault))
        else:
            members = tuple(Member(parameter=f"{name}.{p}", dim=0, view=(1, w.shape[0], 1)) for p, w in module.named_parameters() if w.ndim)
            found[entering, leaving] = (place[leaving], Site(id=f"{name}#block", kind="block", op="block", shape=(1, *call.shape[1:]), members=members))
    return tuple(site for _, site in sorted(found.values(), key=lambda pair: pair[0])), tuple(refusals)


def _watch(model: nn.Module, samples: Samples) -> dict[str, _Call]:
    """Calls of every module that holds weights."""
    calls = {name: _Call() for name, module in model.named_modules() if any(True for _ in module.parameters())}
    handles = []
    for name, module in model.named_modules():
        if name in calls:

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, call: _Call = calls[name]) -> None:
                given = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
                call.times += 1
                like = [t.shape == output.shape and t.dtype == output.dtype for t in given] if isinstance(output, torch.Tensor) else []
                call.fits = sum(like) == 1 and like[0]
                call.shape = tuple(given[0].shape) if given else ()

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        outputs_of(model, samples)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _has_shortcut(entering: fx.Node, leaving: fx.Node) -> bool:
    """Whether an addition carries ``entering`` to ``leaving`` through nothing but ``SHORTCUT`` operations."""
    pending, seen = [(leaving, False)], set()
    while pending:
        node, added = pending.pop()
        if node is entering:
            if added:
                return True
            continue
        if (node, added) in seen or node.op != "call_function" or operation_name(node) not in SHORTCUT:
            continue
        seen.add((node, added))
        adds = operation_name(node) == "add"
        sources = [a for a in (node.args[:2] if adds else node.args[:1]) if isinstance(a, fx.Node)]
        pending += [(a, added or (adds and len(sources) == 2)) for a in sources]
    return False


def _fault_without(traced: Traced, name: str) -> str:
    """Why the model does not do with the identity in place of a module, or nothing."""
    # A shallow copy of the modules on the path suffices: nothing is written.
    trial = _with(traced.model, name.split("."), Skip())
    try:
        shapes = [o.shape for o in outputs_of(trial, traced.few)]
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises without the module is the reason
        lines = str(error).strip().splitlines()
        return f"the model's code needs the block: {lines[0] if lines else type(error).__name__}"
    return "" if shapes == traced.shapes else "the model's outputs change their shape without the block"


def _with(module: nn.Module, path: list[str], new: nn.Module) -> nn.Module:
    changed = copy.copy(module)
    changed._modules = dict(module._modules)
    child = module._modules[path[0]]
    assert child is not None
    changed._modules[path[0]] = new if len(path) == 1 else _with(child, path[1:], new)
    return changed
