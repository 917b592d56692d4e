"""Which layers can be replaced by several in a row."""

from __future__ import annotations

from typing import Any

from torch import nn

from slimline.core.site import Site
from slimline.errors import UnsupportedSite
from slimline.model.apply import aliases_of, tensor_of


def factorable_layer(model: Any, site: Site, method: str) -> nn.Linear | nn.Conv2d:
    """The layer whose weight ``site`` is, checked.

    Raises:
        UnsupportedSite: not a plain linear layer or convolution inside an ``nn.Module``, tied, or grouped; ``method`` is who asks.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedSite(f"{method} at {site.id}: it edits the structure, so it needs the nn.Module, not a {type(model).__name__}.")
    tensor_of(model, site.id)
    layer = model.get_submodule(site.module)
    # Exactly these classes: a subclass may be read by its parent without being called, as in nn.MultiheadAttention.
    if not site.module or type(layer) not in (nn.Linear, nn.Conv2d) or not site.id.endswith(".weight"):
        raise UnsupportedSite(f"{method} at {site.id}: the weight belongs to {type(layer).__name__}, not to an nn.Linear or nn.Conv2d inside the model.")
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    if len(aliases_of(model)[site.id]) > 1:
        raise UnsupportedSite(f"{method} at {site.id}: the weight is tied to {', '.join(n for n in aliases_of(model)[site.id] if n != site.id)}.")
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise UnsupportedSite(f"{method} at {site.id}: the convolution has {layer.groups} groups; only 1 is factored.")
    return layer
