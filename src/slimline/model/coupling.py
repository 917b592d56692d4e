"""Which channels must be pruned together, found from the labels that went through the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.edits import Keep
from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import aliases_of, apply_structure, named_tensors, tensor_of
from slimline.model.labels import Axis, Labels
from slimline.model.trace import trace, where

TOLERANCE = 1e-3  # of the largest output: rounding differs when sums get shorter
Vector = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class _Group:
    """Channels that touch the same dimensions equally often: one site."""

    site: Site
    consumers: tuple[Member, ...]
    exact: bool
    picked: bool


def find_channel_sites(model: nn.Module, example: Samples) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """All sets of channels that can be pruned together, in graph order, and those that cannot, with the reason.

    Every site has been tried: with its first channel removed a copy runs, gives the same shapes and,
    where no norm mixes channels, what the original gives with that channel's consumers zeroed.

    Raises:
        ModelError: the model cannot be exported.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023 (dependencies by rules per
        layer; here they follow from running the graph's own operations on labels).

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
        >>> sites, refusals = find_channel_sites(net, Samples.of(torch.zeros(2, 3)))
        >>> sites[0].id, sites[0].shape, [m.parameter for m in sites[0].members]
        ('0#channels', (8,), ['0.weight', '0.bias', '2.weight'])
        >>> refusals[0].where
        '2#channels'
    """
    samples = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
    graph = trace(model, samples).module()
    assert isinstance(graph, fx.GraphModule)
    groups, refusals = _assemble(Labels(graph, model, samples), model)
    expected = _run(model, samples)
    sites: list[Site] = []
    for group in groups:
        reason = _fault(model, group, samples, expected)
        if reason:
            refusals.append(Refusal(where=group.site.id, reason=reason))
        else:
            sites.append(group.site)
    return tuple(sites), tuple(refusals)


def find_feature_members(graph: fx.GraphModule, model: nn.Module, samples: Samples, name: str, dim: int) -> tuple[tuple[Member, ...], str]:
    """What goes along when features of input ``name`` (``#input.0``) along ``dim`` are left out, the input itself first; or nothing, and why.

    ``graph``: the traced model. As for channels, a copy without the first feature has been tried.
    """
    groups, refusals = _assemble(Labels(graph, model, samples, {name: dim}), model)
    for group in groups:
        own = [m for m in group.site.members if m.parameter == name]
        if not own:
            continue
        if not group.consumers:
            return (), "no layer reads its features as such"
        reason = _fault(model, group, samples, _run(model, samples))
        return ((), reason) if reason else ((*own, *(m for m in group.site.members if m.parameter != name)), "")
    return (), next(
        (r.reason for r in refusals if r.where == f"{INPUT.rpartition('.')[0]}#channels"), "its features cannot be told apart in the exported graph"
    )


def _assemble(labels: Labels, model: nn.Module) -> tuple[list[_Group], list[Refusal]]:
    component = _components(labels)
    axes = {key: component[vector.numpy()] for key, vector in labels.axes.items()}
    reasons: dict[int, str] = {}
    for marked, reason in labels.frozen:
        for c in np.unique(component[marked.numpy()]):
            reasons.setdefault(int(c), reason)
    for name, values in labels.elements.items():
        found = _element_axis(component[values.numpy()])
        if found is None:
            for c in np.unique(component[values.numpy()]):
                reasons.setdefault(int(c), f"{name} holds a value of its own for channels in several dimensions")
        else:
            axes.setdefault(Axis(name, found[0]), found[1])
    for name in _shared_otherwise(model):
        for axis, vector in axes.items():
            if axis.parameter == name:
                for c in np.unique(vector):
                    reasons.setdefault(int(c), f"the storage of {name} is shared in another shape")
    mixed, picked = (np.unique(np.concatenate([[0], *(component[m.numpy()] for m in marks)])) for marks in (labels.mixed, labels.picked))
    groups, refusals = _group(axes, labels, reasons)
    made: list[_Group] = []
    names: dict[str, int] = {}
    for channels in groups:
        members = {axis: _members(axis, vector, channels) for axis, vector in axes.items() if np.isin(vector, channels).any()}
        producer = next(axis for axis in members if "out" in labels.roles.get(axis, ()))
        stem = f"{producer.parameter.rpartition('.')[0]}#channels"
        names[stem] = names.get(stem, 0) + 1
        site_id = stem if names[stem] == 1 else f"{stem}.{names[stem]}"
        bad = next((axis for axis, found in members.items() if found is None), None)
        if bad is not None:
            refusals.append(Refusal(where=site_id, reason=f"its channels lie in dimension {bad.dim} of {bad.parameter} in an order that cannot be cut"))
            continue
        site = Site(id=site_id, kind="channels", op="channels", shape=(len(channels),), members=tuple(m for found in members.values() for m in found or ()))
        consumers = tuple(m for axis, found in members.items() if "in" in labels.roles.get(axis, ()) for m in found or ())
        made.append(_Group(site, consumers, exact=not np.isin(channels, mixed).any(), picked=bool(np.isin(channels, picked).any())))
    return made, refusals


def _components(labels: Labels) -> Vector:
    """Label -> component. Channel dimensions that code divides and nothing else ties keep as many in every part."""
    edges = list(labels.edges)

    def solve() -> Vector:
        pairs = torch.cat(edges, 1).numpy() if edges else np.zeros((2, 0), np.int64)
        graph = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(labels.count, labels.count))
        found: Vector = connected_components(graph, directed=False)[1].astype(np.int64)
        return found

    component = solve()
    # One division after the other: tying the first may already have tied the second.
    for parts in labels.factored:
        values = component[parts.numpy()]
        if len(np.unique(values)) == values.size and parts.shape[0] > 1:
            flat = parts.reshape(-1, parts.shape[-1]).long()
            edges.append(torch.stack([flat[:1].expand_as(flat).reshape(-1), flat.reshape(-1)]))
            component = solve()
    return component


def _element_axis(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[int, Vector] | None:
    """The dimension along which a parameter's components vary, if it is a single one."""
    varying = [d for d in range(values.ndim) if (values != values.take([0], d)).any()]
    if not varying:
        return 0, np.full(values.shape[0], values.flat[0])
    if len(varying) > 1:
        return None
    return varying[0], np.moveaxis(values, varying[0], 0).reshape(values.shape[varying[0]], -1)[:, 0]


def _shared_otherwise(model: nn.Module) -> Iterator[str]:
    """Names of tensors whose storage another one uses in another shape, so that neither can be cut."""
    aliases = aliases_of(model)
    owners: dict[int, set[str]] = {}
    for name, value in named_tensors(model):
        if value.numel():
            owners.setdefault(value.untyped_storage().data_ptr(), set()).add(aliases[name][0])
    for names in owners.values():
        if len(names) > 1:
            yield from names


def _group(axes: Mapping[Axis, Vector], labels: Labels, reasons: Mapping[int, str]) -> tuple[list[Vector], list[Refusal]]:
    """Components with the same incidence, each in the order of their producer; and the producers without any."""
    incidence: dict[int, list[tuple[int, int]]] = {}
    for number, vector in enumerate(axes.values()):
        for c, count in zip(*np.unique(vector, return_counts=True), strict=True):
            incidence.setdefault(int(c), []).append((number, int(count)))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    refusals: dict[str, Refusal] = {}
    for axis, vector in axes.items():
        if "out" not in labels.roles.get(axis, ()):
            continue
        ordered = list(dict.fromkeys(vector.tolist()))
        site_id = f"{axis.parameter.rpartition('.')[0]}#channels"
        frozen = next((reasons[c] for c in ordered if c in reasons), None)
        if frozen is not None or len(ordered) == 1:
            reason = frozen or ("there is only one" if len(vector) == 1 else "all of them are tied together, so none can go alone")
            refusals.setdefault(site_id, Refusal(where=site_id, reason=reason))
        for c in ordered:
            signature = tuple(incidence[c])
            if c not in reasons and c not in groups.setdefault(signature, []):
                groups[signature].append(c)
    return [np.array(g) for g in groups.values() if len(g) > 1], list(refusals.values())


def _members(axis: Axis, vector: Vector, channels: Vector) -> tuple[Member, ...] | None:
    """The places of ``channels`` along one axis, or ``None`` if no views of it express them."""
    number = {int(c): i for i, c in enumerate(channels)}
    places = [p for p, c in enumerate(vector.tolist()) if c in number]
    runs: list[list[int]] = []
    for p in places:
        if runs and p == runs[-1][-1] + 1:
            runs[-1].append(p)
        else:
            runs.append([p])
    found: list[Member] = []
    for run in runs:
        order = np.array([number[int(vector[p])] for p in run])
        inner = int(np.argmax(order != order[0])) or len(order)
        outer, rest = divmod(len(order), inner * len(channels))
        if rest or not np.array_equal(order, np.tile(np.repeat(np.arange(len(channels)), inner), outer)):
            return None
        found.append(Member(parameter=axis.parameter, dim=axis.dim, view=(outer, len(channels), inner), start=run[0]))
    return tuple(found)


# -- trying a site ------------------------------------------------------------------------------------------


def _run(model: nn.Module, samples: Samples) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for t in _pytree.tree_leaves(model(*samples.args, **samples.kwargs)) if isinstance(t, torch.Tensor)]


def _fault(model: nn.Module, group: _Group, samples: Samples, expected: Sequence[torch.Tensor]) -> str:
    """Why the site's first channel cannot be removed, or nothing."""
    site = group.site
    if group.picked and not group.exact:
        return "its channels are picked by position and normalised together, so that a removal cannot be checked"
    kept = tuple(range(1, site.shape[0]))
    try:
        got = _run(apply_structure(model, [Keep(member, kept) for member in site.members]), samples)
    except UnsupportedSite as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises on fewer channels is the reason
        lines = str(error).strip().splitlines()
        return f"the model's code needs them all: {where(error)}{lines[0] if lines else type(error).__name__}"
    if [g.shape for g in got] != [e.shape for e in expected]:
        return f"without one of them the model's outputs change their shape from {[tuple(e.shape) for e in expected]} to {[tuple(g.shape) for g in got]}"
    if group.exact and not _equivalent(got, _masked(model, group.consumers, samples)):
        return "the model's code picks channels by position: without one of them others take its place"
    return ""


def _masked(model: nn.Module, consumers: Sequence[Member], samples: Samples) -> list[torch.Tensor]:
    """What the model gives if nothing reads the first channel."""
    masked: dict[str, torch.Tensor] = {}
    for member in consumers:
        value = masked.setdefault(member.parameter, tensor_of(model, member.parameter).detach().clone())
        value.index_fill_(member.dim, torch.tensor(member.positions((0,))), 0.0)
    with torch.no_grad():
        outputs = torch.func.functional_call(model, masked, samples.args, samples.kwargs, tie_weights=True)
    return [t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _equivalent(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point() and b.numel():
            finite = b.isfinite() & a.isfinite()
            if bool(((a - b)[finite].abs() > TOLERANCE * max(float(b[finite].abs().max()) if finite.any() else 0.0, 1e-6)).any()):
                return False
    return True
