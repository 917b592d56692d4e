"""Runs in the child process of ``_child.py``: a Hugging Face folder is checked before its library sees it.

What a model's configuration, shard index and safetensors headers say is compared with what is there. A file
that they name lies in the folder itself, under a plain name, and is a regular one; nothing of a tensor is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slimline.core.file_kinds import PICKLED
from slimline.errors import ModelError
from slimline.sources._inside import DO_NOT_USE, open_inside, size_of
from slimline.sources._tensor_file import count

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ELSEWHERE = ("configuration_files", "transformers_weights")  # keys with which a configuration sends the library to other files
LARGEST_JSON = 2**24
MOST_SHARDS = 10_000
LAYERS = re.compile(r"(layers|n_layer)$")
MOST_LAYERS = 1_000  # or as many as there are tensors
WIDTHS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
          "U64": 8, "I64": 8, "F64": 8, "C64": 8}  # fmt: skip
CONVERT = "Pickled weights can run code when they are opened: convert them where you trust them, with model.save_pretrained(FOLDER)."
SAVE_AGAIN = "Save the model again with model.save_pretrained(FOLDER)."


def parse(request: dict[str, Any]) -> dict[str, Any]:
    """``config``, ``index`` (tensor -> file; ``None`` where one file holds all), ``files``, and how many ``elements`` these hold.

    Raises:
        ModelError: naming what is wrong with the folder.
    """
    folder = Path(request["path"]).parent
    config = _json(folder, CONFIG)
    _check_config(config)
    names = {p.name for p in folder.iterdir()}
    if WEIGHTS in names:
        index, files = None, [WEIGHTS]
    elif INDEX in names:
        index = _index(folder)
        files = sorted(set(index.values()))
    else:
        pickled = sorted(n for n in names if n.endswith(PICKLED))
        others = sorted(n for n in names if n.endswith(".safetensors"))
        raise ModelError(
            f"it holds no {WEIGHTS} and no {INDEX}" + (f", but {', '.join((others or pickled)[:3])}" if others or pickled else "") + ".",
            hint=CONVERT if pickled and not others else SAVE_AGAIN,
        )
    held = {name: read_header(folder, name) for name in files}
    for tensor, name in (index or {}).items():
        if tensor not in held[name]:
            raise ModelError(f"its {INDEX} says that {tensor[:200]} lies in {name}, which does not hold it.", hint=SAVE_AGAIN)
    tensors = sum(map(len, held.values()))
    deep = next((f"{k} = {v:,}" for k, v in _items(config) if LAYERS.search(k) and isinstance(v, int) and v > max(MOST_LAYERS, tensors)), "")
    if deep:
        raise ModelError(f"its {CONFIG} claims {deep}, but its files hold {tensors:,} tensors.", hint=DO_NOT_USE)
    return {"config": config, "index": index, "files": files, "elements": sum(sum(h.values()) for h in held.values())}


def _json(folder: Path, name: str) -> dict[str, Any]:
    with open_inside(folder, name, "the folder's description") as file:
        if size_of(file) > LARGEST_JSON:
            raise ModelError(f"its {name} has {size_of(file):,} bytes; such a file has at most {LARGEST_JSON:,}.", hint=DO_NOT_USE)
        return _object(file.read(), name)


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except RecursionError:
        raise ModelError(f"its {name} is no JSON that can be read: it is nested too deeply.", hint=DO_NOT_USE) from None
    except ValueError as error:
        raise ModelError(f"its {name} is no JSON: {str(error)[:200]}.", hint=SAVE_AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"its {name} is no JSON object.", hint=SAVE_AGAIN)
    return found


def _items(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _check_config(config: Mapping[str, Any]) -> None:
    if any(k == "auto_map" and v for k, v in _items(config)):
        raise ModelError(
            f"it asks for Python code of its own (auto_map in {CONFIG}), which Slimline does not run.", hint="Write a FILE.py whose model() makes it."
        )
    sent = next((k for k, v in _items(config) if k in ELSEWHERE and v), None)
    if sent is not None:
        raise ModelError(f"its {CONFIG} sends to other files ({sent}), which Slimline does not follow.", hint=SAVE_AGAIN)


def _index(folder: Path) -> dict[str, str]:
    """Tensor -> the file that holds it, a plain name."""
    found = _json(folder, INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise ModelError(f"its {INDEX} holds no weight_map from tensors to files.", hint=SAVE_AGAIN)
    files = set(found.values())
    for name in sorted(files):
        if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
            raise ModelError(f"its {INDEX} names {name[:200]!r}, which is no .safetensors file of the folder.", hint=DO_NOT_USE)
    if len(files) > MOST_SHARDS:
        raise ModelError(f"its {INDEX} names {len(files):,} files; at most {MOST_SHARDS:,} are read.", hint=DO_NOT_USE)
    return found


def read_header(folder: Path, name: str) -> dict[str, int]:
    """Tensor -> its elements, of a safetensors file whose tensors fill it without a gap and without sharing a byte.

    Raises:
        ModelError: the file is cut off, or its header says what cannot be.
    """
    with open_inside(folder, name, "the weights") as file:
        size, head = size_of(file), file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            raise ModelError(f"its {name} ({size:,} bytes) is no safetensors file, or cut off: it claims a header of {length:,} bytes.", hint=SAVE_AGAIN)
        if length > LARGEST_JSON:
            raise ModelError(f"its {name} has a header of {length:,} bytes; at most {LARGEST_JSON:,} are read.", hint=DO_NOT_USE)
        header = _object(file.read(length), name)
    header.pop("__metadata__", None)
    sizes, places = {}, []
    for tensor, entry in header.items():
        what = f"{tensor[:200]} in {name}"
        if (
            not isinstance(entry, dict)
            or not _naturals(entry.get("shape"))
            or not _naturals(entry.get("data_offsets"), 2)
            or str(entry.get("dtype")) not in WIDTHS
        ):
            raise ModelError(f"its {what} is described by {str(entry)[:100]}, which is no tensor.", hint=SAVE_AGAIN)
        sizes[tensor] = count(entry["shape"], what)
        begin, end = entry["data_offsets"]
        if end - begin != sizes[tensor] * WIDTHS[entry["dtype"]]:
            raise ModelError(f"its {what} claims {entry['dtype']} {entry['shape'][:8]}, but holds {end - begin:,} bytes.", hint=DO_NOT_USE)
        places.append((begin, end, what))
    place = 0
    for begin, end, what in sorted(places):
        if begin != place or end > size - 8 - length:
            raise ModelError(f"its {what} lies at {begin:,} to {end:,}, {place:,} is where it belongs, and {size - 8 - length:,} the end.", hint=SAVE_AGAIN)
        place = end
    if place != size - 8 - length:
        raise ModelError(f"its {name} holds {size - 8 - length:,} bytes of tensors, and describes {place:,} of them.", hint=SAVE_AGAIN)
    return sizes


def _naturals(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(type(v) is int and v >= 0 for v in value)
