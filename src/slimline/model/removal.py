"""Whether channels can be removed: tried on copies, many sites in one run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.edits import Keep
from slimline.core.samples import Samples
from slimline.core.site import Member, Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import apply_structure, tensor_of
from slimline.model.trace import where

TOLERANCE = 1e-3  # of the largest output: rounding differs when sums get shorter


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


def fewest(model: nn.Module, samples: Samples) -> Samples:
    """The first of two samples if the model gives for it alone what it gives for it among both, else both."""
    alone, both = samples[:1], _run(model, samples)
    try:
        got = _run(model, alone)
    except Exception:  # noqa: BLE001 - the user's code fixes the batch: both are what it takes
        return samples
    fits = all(b.ndim and b.shape[0] == len(samples) and a.shape == b[:1].shape for a, b in zip(got, both, strict=False))
    return alone if len(got) == len(both) and fits and _equivalent(got, [b[:1] for b in both]) else samples


def faults(model: nn.Module, coupled: Sequence[Coupled], samples: Samples) -> dict[str, str]:
    """Site id -> why its first channel cannot be removed, for those where that is so.

    A trial removes the first channel of several sites at once; the copy must run, give outputs of the same shapes and,
    where the sites are exact, what the original gives with the consumers of those channels zeroed. The sites of
    a trial that fails are halved until the faulty ones are alone. For any two sites A and B one trial removes
    from A and not from B, so that no site passes only because another shrank with it; picked ones are tried alone.

    References:
        Sperner, "Ein Satz über Untermengen einer endlichen Menge", 1928 (how few trials tell all from each other).
        Hwang, "A Method for Detecting All Defective Members in a Population by Group Testing", JASA 1972 (halving).
    """
    trial = _Trial(model, samples)
    found: dict[str, str] = {}

    def settle(chosen: Sequence[Coupled]) -> None:
        reason = trial.fault(chosen) if chosen else ""
        if reason and len(chosen) == 1:
            found[chosen[0].site.id] = reason
        elif reason:
            settle(chosen[: len(chosen) // 2])
            settle(chosen[len(chosen) // 2 :])

    for one in coupled:
        if one.picked:
            settle([one])
    for exact in (True, False):
        family = [c for c in coupled if c.exact is exact and not c.picked]
        for numbers in separating(len(family)):
            settle([family[i] for i in numbers if family[i].site.id not in found])
    return found


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


class _Trial:
    """The model's outputs, against which those of its copies are held."""

    def __init__(self, model: nn.Module, samples: Samples) -> None:
        self.model = model
        self.samples = samples
        self.expected = _run(model, samples)

    def fault(self, coupled: Sequence[Coupled]) -> str:
        """Why the first channels of these sites cannot be removed together, or nothing."""
        exact = all(c.exact for c in coupled)
        if not exact and any(c.picked for c in coupled):
            return "its channels are picked by position and normalised together, so that a removal cannot be checked"
        keep = [Keep(member, tuple(range(1, c.site.shape[0]))) for c in coupled for member in c.site.members]
        try:
            got = _run(apply_structure(self.model, keep), self.samples)
        except UnsupportedSite as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises on fewer channels is the reason
            lines = str(error).strip().splitlines()
            return f"the model's code needs them all: {where(error)}{lines[0] if lines else type(error).__name__}"
        shapes, before = [tuple(g.shape) for g in got], [tuple(e.shape) for e in self.expected]
        if shapes != before:
            return f"without one of them the model's outputs change their shape from {before} to {shapes}"
        if exact and not _equivalent(got, self._masked([m for c in coupled for m in c.consumers])):
            return "the model's code picks channels by position: without one of them others take its place"
        return ""

    def _masked(self, consumers: Sequence[Member]) -> list[torch.Tensor]:
        """What the model gives if nothing reads the first channels."""
        masked: dict[str, torch.Tensor] = {}
        for member in consumers:
            value = masked.setdefault(member.parameter, tensor_of(self.model, member.parameter).detach().clone())
            value.index_fill_(member.dim, torch.tensor(member.positions((0,))), 0.0)
        with torch.no_grad():
            outputs = torch.func.functional_call(self.model, masked, self.samples.args, self.samples.kwargs, tie_weights=True)
        return _tensors(outputs)


def _run(model: nn.Module, samples: Samples) -> list[torch.Tensor]:
    with torch.no_grad():
        return _tensors(model(*samples.args, **samples.kwargs))


def _tensors(outputs: object) -> list[torch.Tensor]:
    return [t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _equivalent(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point() and b.numel():
            finite = b.isfinite() & a.isfinite()
            if bool(((a - b)[finite].abs() > TOLERANCE * max(float(b[finite].abs().max()) if finite.any() else 0.0, 1e-6)).any()):
                return False
    return True
