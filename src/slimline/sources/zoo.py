"""``timm:NAME`` and ``torchvision:NAME``: a known architecture with the weights of ``--weights``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from slimline.errors import ModelError, UsageError
from slimline.sources.foreign import ForeignModel
from slimline.sources.weights import put_weights


def open_zoo(spec: str, *, weights: Mapping[str, torch.Tensor] | None, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress timm:resnet18 --weights FILE.safetensors --data FILE.py``.

    Raises:
        UsageError: there are no weights, or the package is not installed.
        ModelError: the package has no model of that name, or the weights do not fit it.
    """
    package, _, name = spec.partition(":")
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{spec} needs the package {package}, which is not installed.", hint=f"Install it with: pip install 'slimline[{package}]'")
    if weights is None:
        raise UsageError(
            f"{spec} is an architecture without weights, and Slimline downloads none.",
            hint=f"Save your trained weights with safetensors.torch.save_file and give --weights {name}.safetensors.",
        )
    model = build(package, name, weights)
    return ForeignModel.with_task(Path(spec), lambda example: model, data=data, metric=metric, title=name)


def build(package: str, name: str, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model with its weights, in eval mode; the number of classes is that of the weights."""
    make = _makers(package, name)
    model = make({})
    classes = _classes(model, weights)
    if classes is not None:
        model = make({"num_classes": classes})
    put_weights(model, weights)
    return model.eval()


def _makers(package: str, name: str) -> Callable[[dict[str, int]], nn.Module]:
    """A function of the keyword arguments; nothing is downloaded."""
    if package == "timm":
        import timm

        known, make = timm.list_models(), lambda given: timm.create_model(name, pretrained=False, **given)
    else:
        from torchvision import models

        known, make = (
            models.list_models(),
            lambda given: models.get_model(name, weights=None, **({"weights_backbone": None} if _has_backbone(models, name) else {}), **given),
        )
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, 3)
        raise ModelError(f"{package} has no model {name!r}.", hint=f"Near: {', '.join(near)}." if near else f"{package} knows {len(known)} names.")
    return make


def _has_backbone(models: object, name: str) -> bool:
    import inspect

    return "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters  # type: ignore[attr-defined]  # torchvision has no stubs


def _classes(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> int | None:
    """The number of classes of the weights, if the model's last layers differ from them in nothing else."""
    own = model.state_dict()
    differing = [n for n, t in own.items() if n in weights and weights[n].shape != t.shape]
    sizes = {int(weights[n].shape[0]) for n in differing if weights[n].ndim == own[n].ndim and weights[n].shape[1:] == own[n].shape[1:]}
    return sizes.pop() if len(sizes) == 1 else None
