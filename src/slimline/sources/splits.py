"""Which samples are which split, where the user gave none of their own: stratified shares of another, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, UsageError
from slimline.sources import validate

HoldoutSource = Literal["user", "from_search", "from_train"]
TENTH = 10
SPLIT_SEED = 0  # fixed: which samples certify must not change with --seed


@dataclass(frozen=True, eq=False)
class Origin:
    """Samples of a split: those at ``index`` of what the user gave as ``split``; ``None`` is all of them."""

    split: str
    index: torch.Tensor | None = None

    def picked(self, column: tuple[str, ...]) -> tuple[str, ...]:
        """Of one value for each of the user's samples those of the split."""
        return column if self.index is None else tuple(column[i] for i in self.index.tolist())


class Splits:
    """The splits that the user gave, and shares of them where one is missing.

    A missing ``holdout`` is half of ``search``; a missing ``search`` is a tenth of ``train`` (or half of
    the holdout, if that is all there is); if both are missing each is a tenth of ``train``. Stratified by class, seeded.
    ``given``: the user's own samples of a split, the same at every call.

    Example:
        >>> samples = Samples((torch.arange(8.0)[:, None],), {})
        >>> splits = Splits({"search": samples}.get)
        >>> len(splits.data("search")), len(splits.data("holdout")), splits.source
        (4, 4, 'from_search')
    """

    def __init__(self, given: Callable[[str], Samples | None]) -> None:
        self._given = given
        self._found: dict[str, Samples | None] = {}
        self._origins: dict[str, Origin] = {}

    def data(self, split: str) -> Samples | None:
        """The samples of a split; ``None`` where there are none to take.

        Raises:
            UsageError: no such split.
            DataError: too few samples to take a missing one from.
        """
        if split not in validate.SPLITS:
            raise UsageError(f"There is no split {split!r}.", hint=f"Splits are {', '.join(validate.SPLITS)}.")
        if split not in self._found:
            for name, origin in self._divide(split).items():
                whole = self._given(origin.split)
                self._origins[name] = origin
                self._found[name] = whole if whole is None or origin.index is None else whole[origin.index]
        return self._found[split]

    def origin(self, split: str) -> Origin:
        """Where the samples of a split stand in what the user gave."""
        self.data(split)
        return self._origins[split]

    @property
    def source(self) -> HoldoutSource | None:
        """Where the certificate's samples come from; ``None`` without any data."""
        sources: dict[str, HoldoutSource] = {"holdout": "user", "search": "from_search", "train": "from_train"}
        return next((source for split, source in sources.items() if self._given(split) is not None), None)

    def _divide(self, split: str) -> dict[str, Origin]:
        """``split``, and what its absence in the user's data divides along with it."""
        if split == "train":
            return self._divide("search") if self._given("train") is not None and self._given("search") is None else {"train": Origin("train")}
        search, holdout = self._given("search"), self._given("holdout")
        if search is not None:
            if holdout is not None:
                return {"search": Origin("search"), "holdout": Origin("holdout")}
            return shares(search, "search", 2, ("search", "holdout"))
        train = self._given("train")
        if train is None:
            if holdout is None:
                return {"train": Origin("train"), "search": Origin("search"), "holdout": Origin("holdout")}
            return {"train": Origin("train"), **shares(holdout, "holdout", 2, ("search", "holdout"))}
        if holdout is not None:
            return {**shares(train, "train", TENTH, ("search",), "train"), "holdout": Origin("holdout")}
        return shares(train, "train", TENTH, ("search", "holdout"), "train")


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
