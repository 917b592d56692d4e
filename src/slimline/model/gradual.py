"""Masks that come into force little by little while a model trains with its quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from slimline.core.formats import Masked
from slimline.errors import UsageError
from slimline.model.quantizers import FakeWeight

EVERY = 10  # steps between two masks
Importance = Literal["magnitude", "movement"]


class GradualMasks:
    """Lets the masks of a training form grow from none to their sparsity, by what the weights are worth as they are then.

    The weights start as ``dense`` has them, not as a mask chosen beforehand left them. ``importance``: ``magnitude``, or ``movement``: the sum over steps
    of ``-g w``, by which weights go that training moves towards zero. Call ``observe`` after each backward pass and ``step`` after each step of the
    optimizer. A weight that went does not come back. ``ramp``: the share of the steps over which masks grow; the rest is for getting used to it.

    References:
        Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1 (schedule).
        Sanh, Wolf and Rush, "Movement Pruning", NeurIPS 2020, eq. 3 (movement).
    """

    def __init__(self, module: nn.Module, dense: Mapping[str, torch.Tensor], steps: int, *, importance: Importance = "magnitude", ramp: float = 0.6) -> None:
        if steps < 1 or not 0 < ramp <= 1:
            raise UsageError(f"steps={steps}, ramp={ramp}: there is no schedule in that.", hint="Give steps >= 1 and a ramp in (0, 1].")
        owners = dict(module.named_parameters())
        self.layers = [(m, m.format, owners[m.parameter]) for m in module.modules() if isinstance(m, FakeWeight) and isinstance(m.format, Masked)]
        self.importance = importance
        self.last = max(1, round(ramp * steps))
        self.done = 0
        self._moved = [torch.zeros_like(weight) for _, _, weight in self.layers] if importance == "movement" else []
        with torch.no_grad():
            for layer, _, weight in self.layers:
                weight.copy_(dense[layer.parameter])
                layer.get_buffer("mask").fill_(True)

    @torch.no_grad()
    def observe(self) -> None:
        """Take in this step's gradients."""
        for moved, (_, _, weight) in zip(self._moved, self.layers, strict=False):
            if weight.grad is not None:
                moved.sub_(weight.grad * weight)

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimizer; every ``EVERY`` steps, and at the end of the ramp, masks grow."""
        self.done += 1
        if self.done == self.last or (self.done < self.last and self.done % EVERY == 0):
            self._grow(1 - (1 - self.done / self.last) ** 3)

    @torch.no_grad()
    def finish(self) -> None:
        """Let masks be whole where training ended before its time."""
        if self.done < self.last:
            self.done = self.last
            self._grow(1.0)

    def _grow(self, share: float) -> None:
        for index, (layer, format, weight) in enumerate(self.layers):
            mask = layer.get_buffer("mask")
            scores = self._moved[index] if self._moved else weight.abs()
            partial = format if self.done == self.last else partly(format, share)
            if partial is not None:
                lowest = scores.min() - 1
                mask.copy_(partial.masked_by(scores.masked_fill(~mask, float(lowest))))


def partly(format: Masked, share: float) -> Masked | None:
    """``format`` with ``share`` of its zeros; ``None``: none yet.

    Example:
        >>> partly(Masked(sparsity=0.8), 0.5).sparsity, partly(Masked.pattern(2, 4), 0.6).n
        (0.4, 3)
    """
    if format.m:
        kept = format.m - round(share * (format.m - format.n))
        return Masked.pattern(kept, format.m, format.values, format.axis) if kept < format.m else None
    return format.model_copy(update={"sparsity": share * format.sparsity}) if share > 0 else None
