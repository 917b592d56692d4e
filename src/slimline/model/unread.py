"""Channels that no weight reads, or that are the same for every sample: what training for a small archive leaves behind, taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import fx, nn

from slimline.core.edits import Encode, Numerics, SetParameter
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.core.site import Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.operations import groups_of, weight_arguments
from slimline.model.program import Program
from slimline.model.quantizers import FakeValue, FakeWeight
from slimline.model.structure_statistics import reads

Positions = Mapping[str, Mapping[int, Sequence[int]]]  # of a tensor, by dimension: those that stay


def weights_of(training: Program) -> dict[str, torch.Tensor]:
    """Every weight of a training form as it is stored."""
    fakes = _fakes(training)
    with torch.no_grad():
        return {name: fakes[name](value) if name in fakes else value for name, value in training.parameters().items()}


def constants(training: Program, samples: Samples) -> dict[str, torch.Tensor]:
    """By weights of convolutions and linear layers: what each of their inputs is, ``[inputs]``, where it is the same for all ``samples`` everywhere, and else NaN.

    It has to be zero where a layer pads it with zeros, or has no bias that could take it.
    """
    found: dict[str, torch.Tensor] = {}
    readers: dict[str, list[tuple[str, bool, bool]]] = {}  # by the value that is read: weight, whether of a linear layer, whether it takes what is not zero
    for node in training.graph.nodes:
        for op, weight, bias in weight_arguments(node):
            name = _parameter(weight)
            if name is not None and (op == "linear" or (op in ("conv1d", "conv2d", "conv3d") and groups_of(node) == 1)):
                readers.setdefault(node.args[0].name, []).append((name, op == "linear", bias is not None and (op == "linear" or not _pads(node))))

    def look(node: fx.Node, x: torch.Tensor) -> torch.Tensor:
        for name, linear, takes in readers.get(node.name, ()):
            rows = (x if linear else x.movedim(1, -1)).reshape(-1, x.shape[-1 if linear else 1])
            same = (rows == rows[0]).all(0) & ((rows[0] == 0) | takes)
            value = torch.where(same, rows[0].float(), torch.nan)
            found[name] = value if name not in found else torch.where(found[name] == value, value, torch.nan)
        return x

    with torch.inference_mode():
        training.run(samples, trace=look)
    return found


def _parameter(weight: fx.Node) -> str | None:
    """What is read as a weight, through its quantizer; ``None`` where the weight is computed."""
    source = weight if weight.op == "get_attr" else weight.all_input_nodes[0] if weight.op == "call_module" else None
    return str(source.target) if source is not None and source.op == "get_attr" else None


def _pads(node: fx.Node) -> bool:
    """Whether a convolution reads zeros around what it is given."""
    padding = node.args[4] if len(node.args) > 4 else node.kwargs.get("padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, Sequence) else bool(padding)


def read_channels(
    model: nn.Module, sites: Sequence[Site], weights: Mapping[str, torch.Tensor], same: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> dict[str, tuple[int, ...]]:
    """Of every site of channels some of which can go, those that stay: what some weight reads, and what is not the same for every sample since the weights that make it are zero.
    What a channel that goes had read is read by one less, and so on.

    A site of which no layer's weight is known to read stays as it is. ``weights``: by the names of ``model``; ``same``: as ``constants`` gives it.

    Example:
        >>> from slimline.core.site import Member
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> members = (Member(parameter="0.weight", dim=0, view=(1, 3, 1)), Member(parameter="2.weight", dim=1, view=(1, 3, 1)))
        >>> site = Site(id="0#channels", kind="channels", op="channels", shape=(3,), members=members)
        >>> read_channels(net, [site], {"0.weight": torch.ones(3, 2), "2.weight": torch.tensor([[1.0, 0.0, 2.0]])})
        {'0#channels': (0, 2)}
    """
    left = {name: value != 0 for name, value in weights.items()}
    kept: dict[str, tuple[int, ...]] = {}
    places = {
        s.id: [(m, torch.tensor([m.positions((c,)) for c in range(s.features)])) for m in s.members if m.parameter in left]
        for s in sites
        if s.kind == "channels"
    }
    readers = {site: [(m, at) for m, at in members if reads(model, m)] for site, members in places.items()}
    makers = {site: [(m, at) for m, at in members if left[m.parameter].ndim > 1 and not reads(model, m)] for site, members in places.items()}
    fixed = {
        site: torch.stack([_known(same, m, left[m.parameter].shape[m.dim])[at].all(1) for m, at in members]).all(0)
        for site, members in readers.items()
        if members
    }

    def live(members: Sequence[tuple[Member, torch.Tensor]]) -> torch.Tensor:
        """By channel, whether one of the members has a weight there that is not zero."""
        return torch.stack([left[m.parameter].movedim(m.dim, 0).flatten(1).any(1)[at].any(1) for m, at in members]).any(0)

    changed = True
    while changed:
        changed = False
        for site in (s for s in sites if readers.get(s.id)):
            before = kept.get(site.id, tuple(range(site.features)))
            used = live(readers[site.id])
            if makers[site.id]:
                used &= live(makers[site.id]) | ~fixed[site.id]
            idle = [c for c in before if not used[c]]
            gone = tuple(idle[max(site.minimum - (len(before) - len(idle)), 0) :])
            if gone:
                kept[site.id], changed = tuple(sorted({*before} - {*gone})), True
                for m, _ in places[site.id]:
                    left[m.parameter].index_fill_(m.dim, torch.tensor(m.positions(gone)), False)
    return kept


def _known(same: Mapping[str, torch.Tensor], member: Member, inputs: int) -> torch.Tensor:
    """By input of the weight that a member reads by, whether it is the same for every sample."""
    return ~same[member.parameter].isnan() if member.parameter in same else torch.zeros(inputs, dtype=torch.bool)


def narrowed(program: Program, training: Program, narrow: Program, positions: Positions, same: Mapping[str, torch.Tensor]) -> list[Numerics]:
    """What makes of ``narrow``, the float program of the same model without some channels, what ``training`` is without them. ``program``: the float program of all. ``positions``: those
    that stay, by the names of the model. ``same``: inputs that are the same for every sample; what comes of those that go is part of the bias from then on.

    Raises:
        UnsupportedSite: a weight is in a format of which no part can be left out, or does not fit.
    """
    own, edits, fakes = training.parameters(), list[Numerics](), _fakes(training)
    biases = {use.bias: (use.parameter, use.axis) for use in program.weights.values() if use.bias is not None}
    stored = weights_of(training)
    for name, wanted in narrow.parameters().items():
        places = dict(positions.get(name, {}))
        parameter, axis = biases.get(name, ("", 0))
        if name not in positions and axis in positions.get(parameter, {}):  # made by folding
            places = {0: positions[parameter][axis]}
        if name not in own:
            raise UnsupportedSite(f"{name}: the model without some channels has it, and the model with all of them has not.")
        value = own[name].detach()
        if parameter in same and 1 - axis in positions.get(parameter, {}):
            gone = same[parameter].nan_to_num().index_fill(0, torch.tensor(positions[parameter][1 - axis]), 0.0)
            value = value + stored[parameter].flatten(2).sum(2) @ gone if stored[parameter].ndim > 2 else value + stored[parameter] @ gone
        value = _taken(value, places)
        if value.shape != wanted.shape:
            raise UnsupportedSite(f"{name}: {tuple(value.shape)} are left of it where the model without some channels has {tuple(wanted.shape)}.")
        edits.append(_encoded(fakes[name], value, places, training.encoded[name]) if name in fakes else SetParameter(name, value))
    return edits + [layer.settled for layer in training.module.modules() if isinstance(layer, FakeValue)]


def _encoded(layer: FakeWeight, value: torch.Tensor, places: Mapping[int, Sequence[int]], as_before: Encode) -> Encode:
    format = layer.format
    tables = {name: table.detach() for name, table in layer.tables.items()}
    if places and (not isinstance(format, Affine) or format.granularity == "per_group"):
        raise UnsupportedSite(f"{layer.parameter}: no channels can be left out of {format.name}.")
    if isinstance(format, Affine) and format.granularity == "per_channel" and format.axis in places:
        tables["scale"] = _taken(tables["scale"], {0: places[format.axis]})
    return replace(as_before, parts=format.assign(value, tables))


def _taken(value: torch.Tensor, places: Mapping[int, Sequence[int]]) -> torch.Tensor:
    for dim, kept in places.items():
        value = value.index_select(dim, torch.tensor(list(kept)))
    return value


def _fakes(training: Program) -> dict[str, FakeWeight]:
    return {layer.parameter: layer for layer in training.module.modules() if isinstance(layer, FakeWeight)}
