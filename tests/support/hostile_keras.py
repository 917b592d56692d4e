"""Malicious and damaged Keras files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support.hostile import PICKLE, Corpus, raw, zipped

FILES = Path(__file__).parents[1] / "sources" / "keras_files"
CORPUS = Corpus()
case = CORPUS.case


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
    parts = {"config.json": json.dumps(described) if replaced is None else replaced, "metadata.json": content["metadata.json"]}
    payload = zipped({**parts, "model.weights.h5": inner.read_bytes()})
    inner.unlink()
    return raw(folder, payload, "model.keras")


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
    with zipfile.ZipFile(changed(folder)) as archive:
        content = {n: archive.read(n) for n in archive.namelist()}
    return raw(folder, zipped({**content, "model.weights.h5": bytes(2**26)}, zipfile.ZIP_DEFLATED), "model.keras")


@case
def archive_cut_off(folder: Path) -> Path:
    return raw(folder, (FILES / "dense.keras").read_bytes()[:9000], "model.keras")


@case
def archive_without_weights(folder: Path) -> Path:
    return raw(folder, zipped({"config.json": "{}", "../CODE_RAN": "x"}), "model.keras")


@case
def hdf5_cut_off(folder: Path) -> Path:
    return raw(folder, (FILES / "dense.h5").read_bytes()[:9000], "model.h5")


@case
def hdf5_of_weights_alone(folder: Path) -> Path:
    with h5py.File(folder / "model.h5", "w") as file:
        file["x"] = np.ones(4)
    return folder / "model.h5"


@case
def pickle_by_another_name(folder: Path) -> Path:
    return raw(folder, PICKLE, "model.h5")


def ring() -> dict[str, Any]:
    """A functional model whose two layers read each other."""

    def dense(name: str, reads: str) -> dict[str, Any]:
        tensor = {"class_name": "__keras_tensor__", "config": {"shape": [None, 4], "dtype": "float32", "keras_history": [reads, 0, 0]}}
        config = {"name": name, "units": 4, "activation": "linear", "use_bias": False}
        return {
            "module": "keras.layers",
            "class_name": "Dense",
            "config": config,
            "registered_name": None,
            "name": name,
            "inbound_nodes": [{"args": [tensor], "kwargs": {}}],
        }

    start = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": [None, 4], "dtype": "float32", "name": "x"},
        "registered_name": None,
        "name": "x",
        "inbound_nodes": [],
    }
    inner = {"name": "ring", "layers": [start, dense("a", "b"), dense("b", "a")], "input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
    return {"module": "keras", "class_name": "Functional", "config": inner, "registered_name": None}


@case
def graph_in_a_ring(folder: Path) -> Path:
    return changed(folder, lambda c: json.dumps(ring()))


@case
def model_within_itself(folder: Path) -> Path:
    """A hundred models, one in the other."""

    def nested(c: dict[str, Any]) -> str:
        for k in range(100):
            c = {**c, "config": {**c["config"], "name": f"m{k}", "layers": [c["config"]["layers"][0], {**c, "name": f"n{k}"}]}}
        return json.dumps(c)

    return changed(folder, nested)


# -- archives that lie -----------------------------------------------------------------------------------------


def weights_entry(content: bytearray) -> int:
    """Where the weights' entry of the central directory begins."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.weights.h5"))


@case
def archive_that_says_less_than_it_holds(folder: Path) -> Path:
    """Its directory says a thousand bytes where a gigabyte unpacks."""
    path = zip_bomb(folder)
    content = bytearray(path.read_bytes())
    place = weights_entry(content)
    content[place + 24 : place + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    return path


@case
def archive_that_says_more_than_it_holds(folder: Path) -> Path:
    path = changed(folder)
    content = bytearray(path.read_bytes())
    place = weights_entry(content)
    content[place + 20 : place + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content)
    return path


@case
def archive_whose_entries_overlap(folder: Path) -> Path:
    """The configuration's entry points into the weights' own."""
    path = changed(folder)
    content = bytearray(path.read_bytes())
    first, weights = content.index(b"PK\x01\x02"), weights_entry(content)
    content[first + 42 : first + 46] = content[weights + 42 : weights + 46]
    path.write_bytes(content)
    return path


@case
def archive_whose_entry_lies_beyond_its_end(folder: Path) -> Path:
    path = changed(folder)
    content = bytearray(path.read_bytes())
    place = weights_entry(content)
    content[place + 42 : place + 46] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    return path
