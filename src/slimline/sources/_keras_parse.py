"""Runs in the child process of ``_child.py``: a ``.keras`` or ``.h5`` file becomes plain JSON and a file of tensors.

Neither Keras nor TensorFlow is imported, and nothing that the file names is: a configuration is data.
HDF5 can point to other files (external links, external and virtual datasets); such files are refused.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from slimline.errors import ModelError
from slimline.sources._tensor_file import WIDTHS, TensorWriter

ARCHIVE = b"PK\x03\x04"
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
LARGEST_CONFIG = 2**26
GROWTH = 4  # what is unpacked may be so many times the file
SMALL = 2**24  # ... or this
MOST_OBJECTS = 100_000
DEEPEST = 40


def parse(request: dict[str, Any]) -> dict[str, Any]:
    """``config``, ``version``, and ``weights``: path in the file -> number of the tensor.

    Raises:
        ModelError: naming what is wrong with the file.
    """
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no filter plug-ins from anywhere
    path = Path(request["path"])
    with path.open("rb") as file:
        magic = file.read(8)
    if magic[:4] == ARCHIVE:
        return _archive(path, request)
    if magic == b"\x89HDF\r\n\x1a\n":
        return _whole_file(path, request)
    raise ModelError("this is no Keras file: neither a zip archive nor HDF5.", hint="Save it with model.save('model.keras').")


def _archive(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ModelError("its zip archive is damaged or cut off.", hint="Save it again.") from error
    limit = max(SMALL, GROWTH * path.stat().st_size)
    with archive:
        found = {i.filename: i for i in archive.infolist()}
        for name in (CONFIG, WEIGHTS):
            if name not in found:
                raise ModelError(f"its archive holds no {name}.", hint="Save it with model.save('model.keras').")
            if found[name].file_size > (LARGEST_CONFIG if name == CONFIG else limit):
                raise ModelError(
                    f"its {name} unpacks to {found[name].file_size:,} bytes out of a file of {path.stat().st_size:,}.", hint="Do not use this file."
                )
        config = _json(_member(archive, CONFIG, LARGEST_CONFIG))
        metadata = _json(_member(archive, METADATA, LARGEST_CONFIG)) if METADATA in found else {}
        inner = Path(request["tensors"] + ".h5")
        with archive.open(WEIGHTS) as source, inner.open("wb") as target:
            shutil.copyfileobj(source, target)
    weights, tensors = _tensors(inner, "", Path(request["tensors"]))
    return {"config": config, "version": str(metadata.get("keras_version", "3")), "weights": weights, "tensors": tensors, "by_layer": None}


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ModelError(f"its {name} is larger than {limit:,} bytes.")
    return content


def _json(content: bytes | str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ModelError(f"its configuration is no JSON: {error}.", hint="Save it again.") from error
    if not isinstance(found, dict):
        raise ModelError("its configuration is no JSON object.", hint="Save it again.")
    return found


def _whole_file(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs or "model_weights" not in file:
            raise ModelError("it holds weights only, or is no Keras model.", hint="Save the whole model: model.save('model.keras').")
        _hard(file, "model_weights")
        config = _json(file.attrs["model_config"])
        version = file.attrs.get("keras_version", "2")
    weights, tensors = _tensors(path, "model_weights", Path(request["tensors"]))
    order = _order(path)
    return {
        "config": config,
        "version": version.decode() if isinstance(version, bytes) else str(version),
        "weights": weights,
        "tensors": tensors,
        "by_layer": order,
    }


def _order(path: Path) -> dict[str, list[str]]:
    """Layer -> its weights' paths, in the order in which the layer holds them."""
    import h5py

    def names(group: Any, stem: str) -> list[str]:
        found = list(group.attrs[stem]) if stem in group.attrs else []
        part = 0
        while f"{stem}{part}" in group.attrs:
            found += list(group.attrs[f"{stem}{part}"])
            part += 1
        return [n.decode() if isinstance(n, bytes) else str(n) for n in found]

    with h5py.File(path, "r") as file:
        group = file["model_weights"]
        return {layer: [f"{layer}/{w}" for w in names(group[layer], "weight_names")] for layer in names(group, "layer_names") if layer in group}


def _tensors(path: Path, start: str, out: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Every dataset below ``start``."""
    import h5py
    import numpy as np

    writer, limit, total = TensorWriter(out), max(SMALL, GROWTH * path.stat().st_size), 0
    weights: dict[str, int] = {}
    with h5py.File(path, "r") as file:
        waiting: list[tuple[str, Any, int]] = [("", file[start] if start else file, 0)]
        seen: set[int] = set()
        while waiting:
            prefix, group, depth = waiting.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen or depth > DEEPEST or len(seen) + len(weights) > MOST_OBJECTS:
                raise ModelError("its HDF5 groups contain each other, or are beyond number.", hint="Do not use this file.")
            seen.add(address)
            for name in group:
                _hard(group, name)
                thing, where = group[name], f"{prefix}{name}"
                if isinstance(thing, h5py.Group):
                    waiting.append((where + "/", thing, depth + 1))
                    continue
                if not isinstance(thing, h5py.Dataset) or thing.external or thing.is_virtual:
                    raise ModelError(f"its {where} is not stored in the file itself.", hint="Do not use this file.")
                kind = thing.dtype.name
                if kind not in WIDTHS or thing.shape is None:
                    if where.startswith(("optimizer", "_")) or "/" not in where:
                        continue
                    raise ModelError(f"its {where} is of type {kind}, which is not read.")
                nbytes = thing.size * thing.dtype.itemsize
                total += nbytes
                if total > limit:
                    raise ModelError(
                        f"its {where} claims {list(thing.shape)}: {total:,} bytes in all, out of a file of {path.stat().st_size:,}.",
                        hint="Do not use this file.",
                    )
                array = np.ascontiguousarray(thing[()]).astype(thing.dtype.newbyteorder("<"), copy=False)
                weights[where] = writer.add(where, kind, list(thing.shape), array.tobytes())
    return weights, writer.entries


def _hard(group: Any, name: str) -> None:
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ModelError(f"its {name} is a link ({type(link).__name__}), which can lead out of the file.", hint="Do not use this file.")
