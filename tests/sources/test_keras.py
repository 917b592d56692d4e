"""Keras files: equal outputs, torch layers, and nothing of theirs run. ``keras_files/make.py`` made the files, with Keras's own outputs beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")

from support import hostile_keras  # noqa: E402

from slimline.errors import DataError, ModelError, UsageError  # noqa: E402
from slimline.model.sites import find_sites  # noqa: E402
from slimline.sources._keras_run import unfit  # noqa: E402
from slimline.sources.dispatch import open_source  # noqa: E402
from slimline.sources.foreign import ForeignModel  # noqa: E402
from slimline.sources.keras import KerasModel  # noqa: E402

FILES = Path(__file__).parent / "keras_files"


def inputs_and_outputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(FILES / f"{name}.npz") as held:
        return torch.from_numpy(held["inputs"]), torch.from_numpy(held["outputs"])


@pytest.mark.parametrize("file", ["dense.keras", "dense.h5", "images.keras", "images.h5", "sequences.keras"])
def test_outputs_are_those_of_keras(file: str) -> None:
    inputs, outputs = inputs_and_outputs(file.partition(".")[0])
    with torch.no_grad():
        torch.testing.assert_close(open_source(str(FILES / file)).model()(inputs), outputs, rtol=0, atol=1e-5)


def test_channels_can_be_pruned() -> None:
    source = open_source(str(FILES / "images.keras"))
    model = source.model()
    assert isinstance(model.get_submodule("conv2d"), nn.Conv2d) and isinstance(model.get_submodule("separable_conv2d.pointwise"), nn.Conv2d)
    sites, _ = find_sites(model, source.example())
    assert {"conv2d_1#channels", "conv2d_transpose#channels"} <= {s.id for s in sites}


def test_data_that_do_not_fit(tmp_path: Path) -> None:
    data = tmp_path / "data.py"
    data.write_text("import torch\n\ndef data(split):\n    return torch.zeros(9, 2, 8, 8), None\n")
    with pytest.raises(DataError, match=r"takes input_layer\w* as \[N, 8, 8, 2\], the data gives \[2, 2, 8, 8\]"):
        open_source(str(FILES / "images.keras"), data=data).model()


def test_without_h5py_the_remedy_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'slimline\[keras\]'"):
        open_source(str(FILES / "dense.keras"))


def test_lambda_layers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Lambda \(1\).*Slimline runs none"):
        open_source(str(hostile_keras.CORPUS["lambda_layer"](tmp_path))).model()


# -- Keras itself, where it is installed -----------------------------------------------------------------

WITH_KERAS = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed (pip install keras)")


def test_where_keras_is_not_installed_the_report_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "keras" else found(name, *rest))
    source = open_source(str(FILES / "dense.keras"))
    source.model()
    assert isinstance(source, ForeignModel) and source.notes == ["the layers that dense.keras became: not compared with Keras (it is not installed)"]


@pytest.mark.parametrize("file", ["dense.keras", "dense.h5", "images.keras", "images.h5", "sequences.keras"])
def test_models_of_keras_s_own_parts_are_fit_to_be_opened_by_it(file: str) -> None:
    config = KerasModel.read(FILES / file).parsed["config"]
    optimizer = {"module": "keras.src.backend.torch.optimizers.torch_adam", "class_name": "Adam", "registered_name": "Adam"}
    assert unfit(config | {"compile_config": {"optimizer": optimizer}}) == ""  # which it is not shown


@pytest.mark.parametrize(("part", "says"), [
    ({"kernel_initializer": {"module": "keras.config", "class_name": "enable_unsafe_deserialization", "config": {}}}, "keras.config.enable_unsafe"),
    ({"kernel_regularizer": {"module": "os", "class_name": "system", "config": "touch CODE_RAN"}}, "os.system"),
    ({"activation": {"class_name": "__lambda__", "config": {"value": "4wEA"}}}, "None.__lambda__"),
    ({"bias_initializer": {"module": "keras.initializers", "class_name": "Own", "registered_name": "evil>Own"}}, "keras.initializers.Own"),
    ({"activation": {"module": "keras.src.saving.serialization_lib", "class_name": "function", "config": "x"}}, "keras.src.saving"),
    ({"dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}}, "it computes in mixed_float16"),
])  # fmt: skip
def test_keras_does_not_get_to_see_what_is_not_its_own(part: dict[str, Any], says: str) -> None:
    config = KerasModel.read(FILES / "dense.keras").parsed["config"]
    config["config"]["layers"][2]["config"] |= part
    assert says in unfit(config)


@WITH_KERAS
@pytest.mark.parametrize("file", ["dense.keras", "dense.h5", "images.keras", "images.h5", "sequences.keras"])
def test_lifted_model_is_compared_with_keras(file: str) -> None:
    name = file.partition(".")[0]
    model = KerasModel.read(FILES / file)
    inputs, outputs = inputs_and_outputs(name)
    found = model._of_keras([inputs])
    assert isinstance(found, list), found
    torch.testing.assert_close(found[0], outputs, rtol=0, atol=1e-5)


@WITH_KERAS
def test_outputs_that_are_not_those_of_keras_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lifted = KerasModel.module
    monkeypatch.setattr(KerasModel, "module", lambda self, example: nn.Sequential(lifted(self, example), nn.Threshold(0.4, 0.0)))
    source = open_source(str(FILES / "dense.keras"))
    with pytest.raises(ModelError, match=r"output 0 differs from Keras's by 0\.\d+ \(at most 0\.0001 is allowed\)"):
        source.model()
    assert isinstance(source, ForeignModel) and source.notes == []
