"""Weights into a model that is already there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from slimline.errors import ModelError

SHOWN = 5  # names in a message


def put_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Strictly, into all parameters and buffers; of tied ones a single name is enough, as safetensors stores them.

    Raises:
        ModelError: some are missing, unexpected or of another shape.
    """
    own = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    missing = [group[0] for group in names.values() if not any(n in weights for n in group)]
    unexpected = [n for n in weights if n not in own]
    shapes = [f"{n} {list(weights[n].shape)} for {list(t.shape)}" for n, t in own.items() if n in weights and weights[n].shape != t.shape]
    wrong = [
        f"{title}: {', '.join(found[:SHOWN])}{f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''}"
        for title, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if wrong:
        raise ModelError(f"The weights do not fit {type(model).__name__}; {'; '.join(wrong)}.", hint="Give the state dict of exactly this model.")
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
