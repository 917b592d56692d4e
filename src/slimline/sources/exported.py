"""A ``torch.export`` program (``.pt2``) as a module: code, and therefore opened only where it is trusted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from slimline.errors import ModelError
from slimline.sources._child import regular
from slimline.sources.artefact import check_trust
from slimline.sources.foreign import ForeignModel


def open_exported(path: Path, *, trusted: bool, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress MODEL.pt2 --trust --data FILE.py``.

    Raises:
        UsageError: it is not said that the file is trusted.
        ModelError: there is no such file.
    """
    regular(path)
    check_trust(path, trusted)
    return ForeignModel.with_task(path, lambda example: load(path), data=data, metric=metric)


def load(path: Path) -> nn.Module:
    """The program's module. Its mode is the one that it was exported in, and cannot be changed.

    Raises:
        ModelError: torch cannot load it.
    """
    try:
        module = torch.export.load(path).module(check_guards=False)
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded as a torch.export program: {' '.join(str(error).split())[:300]}", hint="Export it again.") from error
    for part in module.modules():
        part.training = False
    return module
