"""``timm:NAME`` and ``torchvision:NAME``, with stand-ins for the two packages."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from slimline.errors import ModelError, UsageError
from slimline.sources.dispatch import open_source


def network(num_classes: int = 1000) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, num_classes))


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, torchvision, models = ModuleType("timm"), ModuleType("torchvision"), ModuleType("torchvision.models")

    def create_model(name: str, pretrained: bool, **given: Any) -> nn.Module:
        assert not pretrained
        return network(**given)

    def get_model(name: str, weights: None, **given: Any) -> nn.Module:
        assert given.pop("weights_backbone", None) is None
        return network(**given)

    def builder(weights: None = None, weights_backbone: str = "DEFAULT") -> None:
        """Detection models take a backbone, and would download it."""

    timm.__dict__.update(list_models=lambda: ["resnet18", "resnet34"], create_model=create_model)
    models.__dict__.update(list_models=lambda: ["resnet18"], get_model=get_model, get_model_builder=lambda name: builder)
    torchvision.__dict__["models"] = models
    for name, module in (("timm", timm), ("torchvision", torchvision), ("torchvision.models", models)):
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("spec", ["timm:resnet18", "torchvision:resnet18"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_weights_decide_the_number_of_classes(spec: str, classes: int) -> None:
    trained = network(classes).eval()
    source = open_source(spec, weights=trained.state_dict())
    x = torch.randn(2, 4)
    assert source.name == "resnet18"
    torch.testing.assert_close(source.build(source)(x), trained(x))  # type: ignore[attr-defined]  # a ForeignModel


def test_without_weights_nothing_is_downloaded() -> None:
    with pytest.raises(UsageError, match="Slimline downloads none"):
        open_source("timm:resnet18")


def test_unknown_name_is_told_with_those_near() -> None:
    with pytest.raises(ModelError, match=r"no model 'resnet19'.*Near: resnet"):
        open_source("timm:resnet19", weights=network().state_dict())


def test_missing_package_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"slimline\[timm\]"):
        open_source("timm:resnet18", weights={})


def test_other_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="do not fit"):
        open_source("timm:resnet18", weights={"0.weight": torch.zeros(3, 3)})
