"""Texts among the inputs: token ids with what goes along, which side they are padded on, and which of several stands for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Site

SHORTEST = 8  # positions of a sequence
MOST_TEXTS = 128  # that are looked at for one that stands for all
FILLED = 2  # positions with the same id at an end of a text, from which on it counts as padding


@dataclass(frozen=True)
class Texts:
    """Token ids ``[N, T]`` (``ids``) and every input of that shape (``inputs``, the ids among them), by name (``#input.0``).

    ``padded``: the side on which they are filled up; ``mask``: the input that tells where, by the value ``padding``; nothing if none does.
    """

    ids: str
    inputs: tuple[str, ...]
    padded: Literal["start", "end"]
    mask: str
    padding: int

    @classmethod
    def of(cls, site: Site) -> Texts:
        """A site's."""
        return cls(site.id, site.tokens, site.padded, site.mask, site.padding)


def texts_in(samples: Samples) -> Texts | None:
    """The inputs of integers that hold most different numbers, and all of their shape; ``None`` where there are none of ``SHORTEST`` positions.

    Padding is what a mask says: one of zeros and ones that gives every row some, the zeros on the padded side. Without one it is the id that the first row is filled up with.

    Example:
        >>> texts_in(Samples.of(torch.tensor([[7, 8, 9, 6, 5, 0, 0, 0]])))
        Texts(ids='#input.0', inputs=('#input.0',), padded='end', mask='#input.0', padding=0)
    """
    values = {f"{INPUT}{number}": value for number, value in enumerate(samples.tensors)}
    integers = {n: v for n, v in values.items() if v.ndim == 2 and v.shape[1] >= SHORTEST and not v.is_floating_point()}
    if not integers:
        return None
    name, ids = max(integers.items(), key=lambda item: len(item[1].unique()))
    inputs = tuple(n for n, v in values.items() if v.shape == ids.shape)
    padded: Literal["start", "end"] = "start" if _repeated(ids) > _repeated(ids.flip(1)) else "end"
    for one in inputs:
        there = values[one] if padded == "end" else values[one].flip(1)
        if bool(((there == 0) | (there == 1)).all() and there.any(1).all() and (there[:, 1:] <= there[:, :-1]).all()):
            return Texts(name, inputs, padded, one, 0)
    first = ids[0] if padded == "end" else ids[0].flip(0)
    filled = bool((first[-FILLED:] == first[-1]).all())
    return Texts(name, inputs, padded, name if filled else "", int(first[-1]) if filled else 0)


def _repeated(rows: torch.Tensor) -> int:
    """How often rows repeat what they begin with."""
    return int((rows == rows[:, :1]).cumprod(1).sum())


def lengths(texts: Texts, samples: Samples) -> torch.Tensor:
    """Positions up to the last that is no padding, of every sample ``[N]``.

    Example:
        >>> samples = Samples.of(torch.tensor([[7, 7, 0, 0, 0, 0, 0, 0], [7, 0, 7, 0, 0, 0, 0, 0]]))
        >>> lengths(texts_in(samples), samples).tolist()
        [2, 3]
    """
    there = samples.tensors[int(texts.mask.removeprefix(INPUT))] != texts.padding
    places = torch.arange(1, there.shape[1] + 1)
    return (there * (places if texts.padded == "end" else places.flip(0))).amax(1)


def usual(samples: Samples, batch: int, texts: Texts | None = None) -> Samples:
    """Twice the text whose length the longest of ``batch`` has on average, the ``batch / (batch + 1)`` quantile of all lengths, so that it stands for a whole batch; of samples that are no texts the first.

    Of the first ``MOST_TEXTS``; with as many for ``batch`` it is the longest of them.

    Example:
        >>> ids = torch.tensor([[7, 7, 7, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0], [7, 7, 0, 0, 0, 0, 0, 0]])
        >>> usual(Samples.of(ids), 1).tensors[0].tolist()
        [[7, 7, 0, 0, 0, 0, 0, 0], [7, 7, 0, 0, 0, 0, 0, 0]]
    """
    samples = samples[:MOST_TEXTS]
    texts = texts or texts_in(samples)
    if texts is None or not texts.mask:
        return samples[:1].without_targets()
    order = lengths(texts, samples).argsort(stable=True)
    place = int(order[min(round(len(order) * batch / (batch + 1) - 0.5), len(order) - 1)])
    return samples[torch.tensor([place, place])].without_targets()
