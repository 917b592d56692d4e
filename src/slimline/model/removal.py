"""Whether channels can be removed: tried on copies, many sites in one run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from slimline.core.edits import keep_channels
from slimline.core.site import Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import apply_structure, tensor_of
from slimline.model.counts import counts_of
from slimline.model.trace import where
from slimline.model.traced import Traced, equivalent, outputs_of, tensors_of

CODE = "the model's code needs them all"


@dataclass(frozen=True, eq=False)
class Coupled:
    """A site and what its trial must know.

    ``consumers``: the members that read its channels. ``exact``: no norm mixes them, so that a removal can be told from the outputs.
    ``picked``: the model's code picks some of them by position.
    """

    site: Site
    consumers: tuple[Member, ...]
    exact: bool
    picked: bool

    @property
    def scattered(self) -> bool:
        """Whether its channels lie somewhere in no order: that the first can go does not tell that any other can."""
        return any(m.places for m in self.site.members)


@dataclass(frozen=True, eq=False)
class Tried:
    """``reasons``: site id -> why its first channel cannot be removed, for those where that is so. ``sites``: those that now say which attributes count their channels."""

    reasons: dict[str, str] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)


def faults(traced: Traced, coupled: Sequence[Coupled], *, counted: bool = True) -> Tried:
    """Which sites' first channels cannot be removed. ``counted``: attributes that count them may follow.

    A trial removes the first channel of several sites at once; the copy must run, give outputs of the same shapes and,
    once for each site that is exact, what the original gives with the consumers of those channels zeroed. The sites of
    a trial that fails are halved until the faulty ones are alone. For any two sites A and B one trial removes
    from A and not from B, so that no site passes only because another shrank with it; picked ones are tried alone.

    References:
        Sperner, "Ein Satz über Untermengen einer endlichen Menge", 1928 (how few trials tell all from each other).
        Hwang, "A Method for Detecting All Defective Members in a Population by Group Testing", JASA 1972 (halving).
    """
    tried = Tried()
    compared: set[str] = set()  # with the masked original, once each

    def settle(chosen: Sequence[Coupled]) -> None:
        chosen = [replace(c, site=tried.sites.get(c.site.id, c.site)) for c in chosen]
        ids = {c.site.id for c in chosen}
        reason = _fault(traced, chosen, compare=not ids <= compared) if chosen else ""
        compared.update(ids if not reason else ())
        if reason and len(chosen) == 1:
            (one,) = chosen
            repaired = _repaired(traced, one) if counted and reason.startswith(CODE) and not one.site.counts else None
            if repaired is None:
                tried.reasons[one.site.id] = reason
            else:
                tried.sites[one.site.id] = repaired
        elif reason:
            settle(chosen[: len(chosen) // 2])
            settle(chosen[len(chosen) // 2 :])

    for one in coupled:
        if one.picked:
            settle([one])
    for exact in (True, False):
        family = [c for c in coupled if c.exact is exact and not c.picked]
        for numbers in separating(len(family)):
            settle([family[i] for i in numbers if family[i].site.id not in tried.reasons])
    return tried


def _repaired(traced: Traced, coupled: Coupled) -> Site | None:
    """The site with attributes that must follow the number of its channels, if with them one can go."""
    for counts in counts_of(traced.model, coupled.site, coupled.consumers):
        site = coupled.site.model_copy(update={"counts": counts})
        if not _fault(traced, [replace(coupled, site=site)], compare=True):
            return site
    return None


def separating(count: int) -> Iterator[tuple[int, ...]]:
    """As few subsets of ``range(count)`` as there can be so that for any two members one subset holds the first and not the second.

    Example:
        >>> list(separating(6))
        [(0, 1, 2), (0, 3, 4), (1, 3, 5), (2, 4, 5)]
        >>> len(list(separating(70)))
        8
    """
    if not count:
        return
    size = next(n for n in itertools.count(1) if math.comb(n, n // 2) >= count)
    codes = list(itertools.islice(itertools.combinations(range(size), max(size // 2, 1)), count))
    yield from (tuple(i for i, code in enumerate(codes) if digit in code) for digit in range(size))


def _fault(traced: Traced, coupled: Sequence[Coupled], *, compare: bool) -> str:
    """Why the first channels of these sites (of scattered ones every other channel too) cannot be removed together, or nothing.

    ``compare``: where that can be told, outputs too.
    """
    if not all(c.exact for c in coupled) and any(c.picked for c in coupled):
        return "its channels are picked by position and normalised together, so that a removal cannot be checked"
    reason = _without(traced, [(c, (0,)) for c in coupled], compare=compare)
    scattered = [(c, tuple(range(1, c.site.shape[0], 2))) for c in coupled if c.scattered]
    return reason or (_without(traced, scattered, compare=compare) if scattered else "")


def _without(traced: Traced, removed: Sequence[tuple[Coupled, tuple[int, ...]]], *, compare: bool) -> str:
    """Why these channels of these sites cannot be removed together, or nothing."""
    keep = [e for c, gone in removed for e in keep_channels(c.site, tuple(i for i in range(c.site.shape[0]) if i not in gone))]
    try:
        got = outputs_of(apply_structure(traced.model, keep), traced.few)
    except UnsupportedSite as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises on fewer channels is the reason
        lines = str(error).strip().splitlines()
        return f"{CODE}: {where(error)}{lines[0] if lines else type(error).__name__}"
    if [g.shape for g in got] != traced.shapes:
        return f"without one of them the model's outputs change their shape from {[*map(tuple, traced.shapes)]} to {[tuple(g.shape) for g in got]}"
    if compare and all(c.exact for c, _ in removed) and not equivalent(got, _masked(traced, removed)):
        return "the model's code picks channels by position: without one of them others take its place"
    return ""


def _masked(traced: Traced, removed: Sequence[tuple[Coupled, tuple[int, ...]]]) -> list[torch.Tensor]:
    """What the model gives if nothing reads these channels."""
    masked: dict[str, torch.Tensor] = {}
    for member, gone in [(m, gone) for c, gone in removed for m in c.consumers]:
        value = masked.setdefault(member.parameter, tensor_of(traced.model, member.parameter).detach().clone())
        value.index_fill_(member.dim, torch.tensor(member.positions(gone)), 0.0)
    with torch.no_grad():
        return tensors_of(torch.func.functional_call(traced.model, masked, traced.few.args, traced.few.kwargs, tie_weights=True))
