"""A compressed model back in a Keras file: opened again, it must give what the compressed model gives."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slimline.core.edits import Replace, Structure, keep_channels
from slimline.core.samples import Samples
from slimline.errors import ModelError
from slimline.model.apply import apply_structure, kept_positions
from slimline.model.coupling import find_channel_sites
from slimline.model.program import Program
from slimline.sources._keras_writing import compressed_file, parameters_of
from slimline.sources.keras import KerasModel

pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")
FILES = Path(__file__).parent / "keras_files"


def opened(name: str, kind: str = ".keras") -> tuple[KerasModel, Samples]:
    return KerasModel.read(FILES / f"{name}{kind}"), Samples.of(torch.from_numpy(np.load(FILES / f"{name}.npz")["inputs"]))


def written(model: KerasModel, example: Samples, edits: list[Structure], spoil: Any = None) -> tuple[bytes, nn.Module]:
    """The file after these edits, and the compressed module."""
    lifted = model.module(example)
    pruned = apply_structure(lifted, edits)
    values = Program.export(pruned, example).parameters()
    if spoil is not None:
        spoil(values)
    kept = {n: {d: torch.tensor(p) for d, p in dims.items()} for n, dims in kept_positions(lifted, edits).items()}
    return compressed_file(model, example, kept, values), pruned


def halved(model: KerasModel, example: Samples) -> list[Structure]:
    sites, _ = find_channel_sites(model.module(example), example)
    return [e for s in sites for e in keep_channels(s, tuple(range(1, s.shape[0], 2)))]


def config(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        found: dict[str, Any] = json.loads(archive.read("config.json"))
    return found


@pytest.mark.parametrize("name", ["dense", "images", "sequences"])
def test_a_pruned_model_goes_back_into_its_file(name: str, tmp_path: Path) -> None:
    model, example = opened(name)
    payload, pruned = written(model, example, halved(model, example))
    (tmp_path / "model.keras").write_bytes(payload)
    again = KerasModel.read(tmp_path / "model.keras")
    with torch.no_grad():
        torch.testing.assert_close(again.module(example)(*example.args), pruned(*example.args), rtol=1e-4, atol=1e-5)
    assert parameters_of(again) < parameters_of(model)
    assert written(model, example, halved(model, example))[0] == payload


def test_the_configuration_follows(tmp_path: Path) -> None:
    model, example = opened("dense")
    (tmp_path / "model.keras").write_bytes(written(model, example, halved(model, example))[0])
    layers = config(tmp_path / "model.keras")["config"]["layers"]
    assert [x["config"]["units"] for x in layers if x["class_name"] == "Dense"] == [6, 3]
    assert not any("build_config" in x for x in layers)  # it holds the widths that were


def test_a_folded_norm_leaves_a_bias_and_becomes_the_identity(tmp_path: Path) -> None:
    model, example = opened("images")
    (tmp_path / "model.keras").write_bytes(written(model, example, [])[0])
    layers = config(tmp_path / "model.keras")["config"]["layers"]
    assert next(x for x in layers if x["class_name"] == "Conv2D")["config"]["use_bias"] is True
    again = KerasModel.read(tmp_path / "model.keras")
    path = next(p for p in again.parsed["weights"] if p.startswith("layers/batch_normalization/"))
    assert torch.equal(again.tensors[again.parsed["weights"][path]], torch.ones(6))


@pytest.mark.parametrize("name", ["dense", "images"])
def test_the_factors_of_a_dense_layer_are_two_layers_under_its_name(name: str, tmp_path: Path) -> None:
    model, example = opened(name)  # the dense layer of images reads channels that lie last in the file
    layer, full = next((n, m) for n, m in model.module(example).named_modules() if isinstance(m, nn.Linear))
    factors = nn.Sequential(nn.Linear(full.in_features, 2, bias=False), nn.Linear(2, full.out_features))
    payload, pruned = written(model, example, [Replace(layer, factors)])
    (tmp_path / "model.keras").write_bytes(payload)
    again = KerasModel.read(tmp_path / "model.keras")
    with torch.no_grad():
        torch.testing.assert_close(again.module(example)(*example.args), pruned(*example.args), rtol=1e-4, atol=1e-5)
    (tmp_path / "whole.keras").write_bytes(written(model, example, [])[0])  # with the biases that writing adds
    assert parameters_of(again) == parameters_of(KerasModel.read(tmp_path / "whole.keras")) - full.weight.numel() + 2 * sum(full.weight.shape)
    new = next(x for x in config(tmp_path / "model.keras")["config"]["layers"] if x["config"]["name"] == layer)
    assert new["class_name"] == "Sequential" and [x["config"]["units"] for x in new["config"]["layers"]] == [2, full.out_features]
    keras = pytest.importorskip("keras", reason="Keras is not installed (pip install keras)")
    opened_by_keras = keras.models.load_model(tmp_path / "model.keras")
    with torch.no_grad():
        said = torch.from_numpy(opened_by_keras.predict(example.args[0].numpy(), verbose=0))
        torch.testing.assert_close(said, pruned(*example.args), rtol=1e-4, atol=1e-5)


def test_what_no_keras_layer_can_be_is_refused() -> None:
    images, pictures = opened("images")
    conv = images.module(pictures).get_submodule("conv2d")
    assert isinstance(conv, nn.Conv2d)
    factors = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 6, 3, padding=1, bias=False))
    with pytest.raises(ModelError, match=r"in the place of a layer of images\.keras"):
        written(images, pictures, [Replace("conv2d", factors)])
    model, example = opened("dense")
    with pytest.raises(ModelError, match="left out dense"):
        written(model, example, [], lambda values: values.pop("dense.weight"))
    with pytest.raises(ModelError, match=r"an \.h5 file"):
        written(*opened("dense", ".h5"), [])


def test_the_state_of_an_optimizer_is_left_out() -> None:
    model, example = opened("dense")
    parsed = {**model.parsed, "weights": {**model.parsed["weights"], "optimizer/vars/1": len(model.tensors)}}
    trained = KerasModel(model.path, parsed, [*model.tensors, torch.ones(16, 12)], model.inputs, model.names)
    assert written(trained, example, halved(model, example))[0] == written(model, example, halved(model, example))[0]
    assert parameters_of(trained) == parameters_of(model)
