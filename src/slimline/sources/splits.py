"""Which samples are which split, where the user gave none of their own: stratified shares of another, the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError
from slimline.sources import validate

SPLIT_SEED = 0  # fixed: which samples certify must not change with --seed


@dataclass(frozen=True, eq=False)
class Origin:
    """Samples of a split: those at ``index`` of what the user gave as ``split``; ``None`` is all of them."""

    split: str
    index: torch.Tensor | None = None


def shares(samples: Samples, split: str, parts: int, names: Sequence[str], rest: str = "") -> dict[str, Origin]:
    """Disjoint shares of one ``parts``-th each, then the rest if it has a name; in the original order.

    Every ``parts``-th sample of a seeded shuffle, sorted by class where there are classes: each share
    has every class in proportion.

    Raises:
        DataError: there are fewer than two samples for each share.
    """
    if len(samples) < 2 * parts:
        raise DataError(
            f"data({split!r}) has {len(samples)} samples, too few to take the missing splits from.",
            hint=f"Give at least {2 * parts}, or return search and holdout samples of their own.",
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SPLIT_SEED))
    labels = _pytree.tree_leaves(samples.targets)
    if samples.targets is not None and len(labels) == 1 and are_labels(labels[0]):
        order = order[labels[0][order].sort(stable=True).indices]
    place = torch.arange(len(samples)) % parts
    chosen = {name: place == k for k, name in enumerate(names)} | ({rest: place >= len(names)} if rest else {})
    return {name: Origin(split, order[mask].sort().values) for name, mask in chosen.items()}


def are_labels(value: Any) -> bool:
    """Whether these are class numbers ``[N]``."""
    return isinstance(value, torch.Tensor) and value.ndim == 1 and validate.is_labels(value)
