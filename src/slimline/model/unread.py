"""Channels that no weight reads: what training for a small archive leaves behind, taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from slimline.core.edits import Encode, Numerics, SetParameter
from slimline.core.formats import Affine
from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.model.program import Program
from slimline.model.quantizers import FakeValue, FakeWeight
from slimline.model.structure_statistics import reads

Positions = Mapping[str, Mapping[int, Sequence[int]]]  # of a tensor, by dimension: those that stay


def weights_of(training: Program) -> dict[str, torch.Tensor]:
    """Every weight of a training form as it is stored."""
    fakes = _fakes(training)
    with torch.no_grad():
        return {name: fakes[name](value) if name in fakes else value for name, value in training.parameters().items()}


def read_channels(model: nn.Module, sites: Sequence[Site], weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Of every site of channels some of which no weight reads, those that some weight does; what a channel that goes had read is read by one less.

    A site of which no layer's weight is known to read counts as read throughout. ``weights``: by the names of ``model``.

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
        s.id: [(m, torch.tensor([m.positions((c,)) for c in range(s.features)])) for m in s.members if m.parameter in left and reads(model, m)]
        for s in sites
        if s.kind == "channels"
    }
    changed = True
    while changed:
        changed = False
        for site in (s for s in sites if places.get(s.id)):
            before = kept.get(site.id, tuple(range(site.features)))
            used = torch.stack([left[m.parameter].movedim(m.dim, 0).flatten(1).any(1)[at].any(1) for m, at in places[site.id]]).any(0).tolist()
            idle = [c for c in before if not used[c]]
            gone = tuple(idle[max(site.minimum - (len(before) - len(idle)), 0) :])
            if gone:
                kept[site.id], changed = tuple(sorted({*before} - {*gone})), True
                for m in (m for m in site.members if m.parameter in left):
                    left[m.parameter].index_fill_(m.dim, torch.tensor(m.positions(gone)), False)
    return kept


def narrowed(program: Program, training: Program, narrow: Program, positions: Positions) -> list[Numerics]:
    """What makes of ``narrow``, the float program of the same model without some channels, what ``training`` is without them. ``program``: the float program of all. ``positions``: those
    that stay, by the names of the model.

    Raises:
        UnsupportedSite: a weight is in a format of which no part can be left out, or does not fit.
    """
    own, edits, fakes = training.parameters(), list[Numerics](), _fakes(training)
    biases = {use.bias: (use.parameter, use.axis) for use in program.weights.values() if use.bias is not None}
    for name, wanted in narrow.parameters().items():
        places = dict(positions.get(name, {}))
        if name in biases:
            parameter, axis = biases[name]
            places = {0: positions[parameter][axis]} if axis in positions.get(parameter, {}) else places
        if name not in own:
            raise UnsupportedSite(f"{name}: the model without some channels has it, and the model with all of them has not.")
        value = _taken(own[name].detach(), places)
        if value.shape != wanted.shape:
            raise UnsupportedSite(f"{name}: {tuple(value.shape)} are left of it where the model without some channels has {tuple(wanted.shape)}.")
        edits.append(_encoded(fakes[name], value, places, training.encoded[name]) if name in fakes else SetParameter(name, value))
    return edits + [layer.settled for layer in training.module.modules() if isinstance(layer, FakeValue)]


def _encoded(layer: FakeWeight, value: torch.Tensor, places: Mapping[int, Sequence[int]], as_before: Encode) -> Encode:
    format = layer.format
    if not isinstance(format, Affine) or format.granularity == "per_group":
        raise UnsupportedSite(f"{layer.parameter}: no channels can be left out of {format.name}.")
    tables = {name: table.detach() for name, table in layer.tables.items()}
    if format.granularity == "per_channel" and format.axis in places:
        tables["scale"] = _taken(tables["scale"], {0: places[format.axis]})
    return replace(as_before, parts=format.assign(value, tables))


def _taken(value: torch.Tensor, places: Mapping[int, Sequence[int]]) -> torch.Tensor:
    for dim, kept in places.items():
        value = value.index_select(dim, torch.tensor(list(kept)))
    return value


def _fakes(training: Program) -> dict[str, FakeWeight]:
    return {layer.parameter: layer for layer in training.module.modules() if isinstance(layer, FakeWeight)}
