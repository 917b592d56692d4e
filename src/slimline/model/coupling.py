"""Which channels must be pruned together, found from the labels that went through the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.model.apply import aliases_of, named_tensors
from slimline.model.labels import Axis, Labels
from slimline.model.removal import Coupled, faults
from slimline.model.traced import Traced

Vector = np.ndarray[tuple[int], np.dtype[np.int64]]


def find_channel_sites(model: nn.Module, example: Samples, traced: Traced | None = None) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """All sets of channels that can be pruned together, in graph order, and those that cannot, with the reason.

    Every site has been tried (``removal.faults``): with its first channel removed a copy runs, gives the same shapes and,
    where no norm mixes channels, what the original gives with that channel's consumers zeroed. Where the model's code holds their number, it follows.
    ``traced``: the model's graph, if it is at hand.

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
    traced = traced if traced is not None else Traced(model, example)
    found, refusals = assemble(Labels(traced.graph, model, traced.samples), model)
    tried = faults(traced, found)
    refusals += [Refusal(where=c.site.id, reason=tried.reasons[c.site.id]) for c in found if c.site.id in tried.reasons]
    return tuple(tried.sites.get(c.site.id, c.site) for c in found if c.site.id not in tried.reasons), tuple(refusals)


def find_feature_members(traced: Traced, name: str, dim: int) -> tuple[tuple[Member, ...], str]:
    """What goes along when features of input ``name`` (``#input.0``) along ``dim`` are left out, the input itself first; or nothing, and why.

    As for channels, a copy without the first feature has been tried.
    """
    found, refusals = assemble(Labels(traced.graph, traced.model, traced.samples, {name: dim}), traced.model)
    for coupled in found:
        site = coupled.site
        own = [m for m in site.members if m.parameter == name]
        if not own:
            continue
        if not coupled.consumers:
            return (), "no layer reads its features as such"
        reason = faults(traced, [coupled], counted=False).reasons.get(site.id, "")
        return ((), reason) if reason else ((*own, *(m for m in site.members if m.parameter != name)), "")
    return (), next(
        (r.reason for r in refusals if r.where == f"{INPUT.rpartition('.')[0]}#channels"), "its features cannot be told apart in the exported graph"
    )


def assemble(labels: Labels, model: nn.Module) -> tuple[list[Coupled], list[Refusal]]:
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
    together = [several for marked in labels.mixed if len(several := np.unique(component[marked.numpy()])) > 1]
    mixed = np.unique(np.concatenate([[0], *together]))
    picks = [component[marked.numpy()] for marked, dim in labels.picked if _varies(component[marked.numpy()], dim)]
    picked = np.unique(np.concatenate([[0], *(p.ravel() for p in picks)]))
    groups, refusals = _group(axes, labels, reasons)
    made: list[Coupled] = []
    names: dict[str, int] = {}
    for channels, members in zip(groups, _members(axes, groups), strict=True):
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
        made.append(Coupled(site, consumers, exact=not np.isin(channels, mixed).any(), picked=bool(np.isin(channels, picked).any())))
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
    # A layer serves heads in many places if these go whole; otherwise its channels are the same in all of them.
    for one in labels.shared:
        values = component[one.rows.numpy()]
        if (values != values[:, :1]).any():
            pairs = [torch.stack(torch.broadcast_tensors(one.rows[:1], other)).flatten(1) for other in (one.rows, *one.vectors)]
            edges += [p[:, (p != 0).all(0)].long() for p in pairs]
            component = solve()
    # What a summary of channels meets beside other summaries needs all of them: they are one.
    fixed = np.unique(np.concatenate([[0], *(component[marked.numpy()] for marked, _ in labels.frozen)]))
    for label, channels in labels.summaries.items():
        others = np.flatnonzero(component == component[label])
        if component[label] in fixed or not all(int(o) in labels.summaries for o in others):
            edges.append(torch.stack([torch.full_like(channels, label), channels]).long())
    component = solve() if labels.summaries else component
    # One division after the other: what ties the parts of one may have balanced the next.
    for parts in labels.factored:
        values = component[parts.numpy()]
        if parts.shape[0] > 1 and not _balanced(values.reshape(len(values), -1)):
            flat = parts.reshape(-1, parts.shape[-1]).long()
            edges.append(torch.stack([flat[:1].expand_as(flat).reshape(-1), flat.reshape(-1)]))
            component = solve()
    return component


def _balanced(parts: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> bool:
    """Whether parts stay of one size whichever component goes: each lies equally often in all of them, or is all of some of them."""
    components, places = np.unique(parts, return_inverse=True)
    counts = np.zeros((len(parts), len(components)), np.int64)
    np.add.at(counts, (np.arange(len(parts))[:, None], places.reshape(parts.shape)), 1)
    return bool(((counts == counts[0]).all(0) | ((counts == 0) | (counts == parts.shape[1])).all(0)).all())


def _varies(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]], dim: int) -> bool:
    return bool((values != values.take([0], dim)).any())


def _element_axis(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[int, Vector] | None:
    """The dimension along which a parameter's components vary, if it is a single one."""
    varying = [d for d in range(values.ndim) if _varies(values, d)]
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
    incidence = _incidence(axes.values())
    groups: dict[bytes, dict[int, None]] = {}
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
            if c not in reasons:
                groups.setdefault(incidence[c], {})[c] = None
    return [np.array(list(g)) for g in groups.values() if len(g) > 1], list(refusals.values())


def _incidence(vectors: Iterable[Vector]) -> dict[int, bytes]:
    """Component -> along which axes it lies, and how often: equal bytes for equal incidence."""
    rows = [
        np.column_stack([found, np.full(len(found), number), counts])
        for number, v in enumerate(vectors)
        for found, counts in [np.unique(v, return_counts=True)]
    ]
    if not rows:
        return {}
    table = np.concatenate(rows)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return {int(part[0, 0]): part[:, 1:].tobytes() for part in np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)}


def _members(axes: Mapping[Axis, Vector], groups: Sequence[Vector]) -> list[dict[Axis, tuple[Member, ...] | None]]:
    """Per group of channels, the axes where they lie and their places along each; ``None`` if no views of the axis express them."""
    size = 1 + max((int(v.max()) for v in axes.values()), default=0)
    group, number = np.full(size, -1), np.zeros(size, np.int64)
    for g, channels in enumerate(groups):
        group[channels], number[channels] = g, np.arange(len(channels))
    found: list[dict[Axis, tuple[Member, ...] | None]] = [{} for _ in groups]
    for axis, vector in axes.items():
        owner = group[vector]
        for g in np.unique(owner[owner >= 0]):
            places = np.flatnonzero(owner == g)
            found[g][axis] = _views(axis, number[vector], places, len(groups[g])) or _scattered(axis, number[vector], places, len(groups[g]))
    return found


def _scattered(axis: Axis, number: Vector, places: Vector, count: int) -> tuple[Member, ...] | None:
    """Where every channel lies along an axis, as often as every other, in no order that views express."""
    order = number[places]
    each, rest = divmod(len(places), count)
    if rest or (np.bincount(order, minlength=count) != each).any():
        return None
    owned = places[np.argsort(order, kind="stable")].reshape(count, each)
    return (Member(parameter=axis.parameter, dim=axis.dim, view=(1, count, each), places=tuple(map(tuple, owned.tolist()))),)


def _views(axis: Axis, number: Vector, places: Vector, count: int) -> tuple[Member, ...] | None:
    """The views of an axis that hold ``count`` channels, numbered along it, at ``places``; or ``None``."""
    found: list[Member] = []
    for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
        order = number[run]
        inner = int(np.argmax(order != order[0])) or len(order)
        outer, rest = divmod(len(order), inner * count)
        if rest or not np.array_equal(order, np.tile(np.repeat(np.arange(count), inner), outer)):
            return None
        found.append(Member(parameter=axis.parameter, dim=axis.dim, view=(outer, count, inner), start=int(run[0])))
    return tuple(found)
