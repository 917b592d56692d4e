"""Keras files: equal outputs, torch layers, and nothing of theirs run. ``keras_files/make.py`` made the files, with Keras's own outputs beside them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")

from slimline.errors import DataError, ModelError, SlimlineError, UsageError  # noqa: E402
from slimline.model.sites import find_sites  # noqa: E402
from slimline.sources import _child  # noqa: E402
from slimline.sources.dispatch import open_source  # noqa: E402

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


# -- hostile files ------------------------------------------------------------------------------------

CORPUS: dict[str, Callable[[Path], Path]] = {}


def case(function: Callable[[Path], Path]) -> Callable[[Path], Path]:
    CORPUS[function.__name__] = function
    return function


def changed(folder: Path, config: Callable[[dict[str, Any]], Any] = lambda c: None, weights: Callable[[Any], None] = lambda f: None) -> Path:
    """``dense.keras`` with another configuration or other weights."""
    with zipfile.ZipFile(FILES / "dense.keras") as archive:
        content = {n: archive.read(n) for n in archive.namelist()}
    described = json.loads(content["config.json"])
    replaced = config(described)
    inner = folder / "w.h5"
    inner.write_bytes(content["model.weights.h5"])
    with h5py.File(inner, "r+") as file:
        weights(file)
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(described) if replaced is None else replaced)
        archive.writestr("metadata.json", content["metadata.json"])
        archive.write(inner, "model.weights.h5")
    inner.unlink()
    return folder / "model.keras"


def layer(config: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = config["config"]["layers"][number]
    return found


@case
def lambda_layer(folder: Path) -> Path:
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAA", "defaults": None, "closure": None}}
    return changed(folder, lambda c: layer(c, 1).update(class_name="Lambda", config={"name": "l", "function": code}))


@case
def class_of_a_module(folder: Path) -> Path:
    return changed(folder, lambda c: layer(c, 1).update(module="os", class_name="system", config={"command": "touch CODE_RAN"}))


@case
def registered_class(folder: Path) -> Path:
    return changed(folder, lambda c: layer(c, 2).update(registered_name="evil>Dense"))


@case
def model_of_another_class(folder: Path) -> Path:
    return changed(folder, lambda c: c.update(module="subprocess", class_name="Popen", config={"args": ["touch", "CODE_RAN"]}))


@case
def activation_that_is_code(folder: Path) -> Path:
    return changed(folder, lambda c: layer(c, 2)["config"].update(activation="__import__('os').system('touch CODE_RAN')"))


@case
def layers_that_are_no_list(folder: Path) -> Path:
    return changed(folder, lambda c: c["config"].update(layers="all"))


@case
def configuration_without_end(folder: Path) -> Path:
    return changed(folder, lambda c: "[" * 200_000)


@case
def configuration_that_is_no_json(folder: Path) -> Path:
    return changed(folder, lambda c: "import os")


@case
def negative_shape(folder: Path) -> Path:
    return changed(folder, lambda c: layer(c, 0)["config"].update(batch_shape=[None, -4, 4]))


@case
def enormous_input(folder: Path) -> Path:
    return changed(folder, lambda c: layer(c, 0)["config"].update(batch_shape=[None, 2**20, 2**20]))


@case
def weights_of_another_shape(folder: Path) -> Path:
    def change(file: Any) -> None:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = np.ones((3, 12), np.float32)

    return changed(folder, weights=change)


@case
def weights_missing(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.__delitem__("layers/dense"))


@case
def dataset_of_terabytes(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.create_dataset("layers/big/vars/0", (2**20, 2**20), np.float32, chunks=(64, 64)) and None)


@case
def external_link(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.__setitem__("layers/out", h5py.ExternalLink("/etc/passwd", "/")))


@case
def soft_link(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.__setitem__("layers/soft", h5py.SoftLink("/layers/dense")))


@case
def external_dataset(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.create_dataset("layers/x/vars/0", (16,), np.uint8, external=[("/etc/passwd", 0, 16)]) and None)


@case
def virtual_dataset(folder: Path) -> Path:
    def change(file: Any) -> None:
        layout = h5py.VirtualLayout((16,), np.float32)
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (16,))
        file.create_virtual_dataset("layers/v/vars/0", layout)

    return changed(folder, weights=change)


@case
def groups_in_a_ring(folder: Path) -> Path:
    return changed(folder, weights=lambda file: file.__setitem__("layers/ring", file["layers"]))


@case
def zip_bomb(folder: Path) -> Path:
    path = changed(folder)
    with zipfile.ZipFile(path) as archive:
        content = {n: archive.read(n) for n in archive.namelist() if n != "model.weights.h5"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in content.items():
            archive.writestr(name, held)
        with archive.open("model.weights.h5", "w") as file:
            for _ in range(64):
                file.write(bytes(2**20))
    return path


@case
def archive_cut_off(folder: Path) -> Path:
    (folder / "model.keras").write_bytes((FILES / "dense.keras").read_bytes()[:9000])
    return folder / "model.keras"


@case
def archive_without_weights(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("../CODE_RAN", "x")
    return folder / "model.keras"


@case
def hdf5_cut_off(folder: Path) -> Path:
    (folder / "model.h5").write_bytes((FILES / "dense.h5").read_bytes()[:9000])
    return folder / "model.h5"


@case
def hdf5_of_weights_alone(folder: Path) -> Path:
    with h5py.File(folder / "model.h5", "w") as file:
        file["x"] = np.ones(4)
    return folder / "model.h5"


@case
def pickle_by_another_name(folder: Path) -> Path:
    (folder / "model.h5").write_bytes(b"\x80\x04cos\nsystem\n(S'touch CODE_RAN'\ntR.")
    return folder / "model.h5"


def in_this_process(function: str, path: Path, **request: Any) -> dict[str, Any]:
    import importlib

    module, _, name = function.partition(":")
    try:
        found: dict[str, Any] = getattr(importlib.import_module(module), name)({**request, "path": str(path)})
        return found
    except SlimlineError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", list(CORPUS))
def test_hostile_file_is_a_typed_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CORPUS[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_child, "parse", in_this_process)
    with pytest.raises(SlimlineError) as caught:
        open_source(str(path)).model()
    assert os.listdir(tmp_path) == [path.name] and len(str(caught.value)) < 1500


def test_lambda_layers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Lambda \(1\).*Slimline runs none"):
        open_source(str(lambda_layer(tmp_path))).model()
