"""Malicious and damaged Hugging Face folders, and what each is refused for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from support.hostile import PICKLE, Corpus, hole, raw

CORPUS = Corpus()
SAYS: dict[str, str] = {}
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1}
GOOD = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
INDEX = "model.safetensors.index.json"


def refused(says: str) -> Any:
    """For ``says``, a regular expression."""

    def register(function: Any) -> Any:
        SAYS[function.__name__] = says
        return CORPUS.case(function)

    return register


def safetensors(header: Any, held: bytes = bytes(16), length: int | None = None) -> bytes:
    """A file with this header and these bytes; ``length``: what it claims of the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + held


def made(folder: Path, config: Any = CONFIG, **files: bytes | dict[str, Any]) -> Path:
    """``folder/hf`` with a configuration and these files (``__`` in a name stands for a dot)."""
    inner = folder / "hf"
    inner.mkdir()
    raw(inner, config if isinstance(config, bytes) else json.dumps(config).encode(), "config.json")
    for name, content in files.items():
        raw(inner, content if isinstance(content, bytes) else json.dumps(content).encode(), name.replace("__", "."))
    return inner


def one(folder: Path, content: bytes, config: Any = CONFIG) -> Path:
    return made(folder, config, model__safetensors=content)


def sharded(folder: Path, **weight_map: Any) -> Path:
    files = {INDEX.replace(".", "__"): {"metadata": {}, "weight_map": weight_map}, "a__safetensors": safetensors(GOOD)}
    return made(folder, **files)  # type: ignore[arg-type]


# -- configurations ------------------------------------------------------------------------------------


@refused("asks for Python code of its own")
def code_of_its_own(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), {**CONFIG, "auto_map": {"AutoModel": "own.Own"}})


@refused("asks for Python code of its own")
def code_of_a_part_s_own(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), {**CONFIG, "text_config": {"parts": [{"auto_map": {"AutoConfig": "own.Own"}}]}})


@refused(r"sends to other files \(transformers_weights\)")
def weights_of_another_folder(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), {**CONFIG, "transformers_weights": "../secret.safetensors"})


@refused(r"sends to other files \(configuration_files\)")
def configuration_of_another_name(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), {**CONFIG, "configuration_files": ["config.4.0.0.json"]})


@refused("claims num_hidden_layers = 1,000,000,000, but its files hold 1 tensors")
def more_layers_than_tensors(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), {**CONFIG, "num_hidden_layers": 10**9})


@refused("nested too deeply")
def configuration_without_end(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), b"[" * 200_000)


@refused("has 16,777,217 bytes")
def configuration_too_large(folder: Path) -> Path:
    return one(folder, safetensors(GOOD), b" " * (2**24 + 1))


@refused("config.json cannot be opened")
def configuration_that_is_a_link(folder: Path) -> Path:
    inner = one(folder, safetensors(GOOD))
    raw(folder.parent, (inner / "config.json").read_bytes(), "secret")
    (inner / "config.json").unlink()
    (inner / "config.json").symlink_to(folder.parent / "secret")
    return inner


# -- weights ---------------------------------------------------------------------------------------------


@refused("holds no model.safetensors and no .*, but pytorch_model.bin.* Pickled weights can run code")
def pickle_as_pytorch_model(folder: Path) -> Path:
    return made(folder, pytorch_model__bin=PICKLE)


@refused("is no safetensors file, or cut off")
def pickle_as_safetensors(folder: Path) -> Path:
    return one(folder, PICKLE)


@refused("holds no model.safetensors")
def no_weights(folder: Path) -> Path:
    return made(folder)


@refused("model.safetensors cannot be opened")
def weights_that_are_a_link(folder: Path) -> Path:
    inner = made(folder)
    (inner / "model.safetensors").symlink_to(raw(folder.parent, safetensors(GOOD), "secret"))
    return inner


@refused("is no regular file")
def weights_that_are_a_pipe(folder: Path) -> Path:
    inner = made(folder)
    os.mkfifo(inner / "model.safetensors")
    return inner


@refused("is no safetensors file, or cut off")
def safetensors_of_five_bytes(folder: Path) -> Path:
    return one(folder, safetensors(GOOD)[:5])


@refused("is no safetensors file, or cut off")
def safetensors_cut_off_in_its_header(folder: Path) -> Path:
    return one(folder, safetensors(GOOD)[:40])


@refused("lies at 0 to 16, 0 is where it belongs, and 8 the end")
def safetensors_cut_off_in_its_tensors(folder: Path) -> Path:
    return one(folder, safetensors(GOOD)[:-8])


@refused("cut off: it claims a header of 9,223,372,036,854,775,807 bytes")
def header_of_exabytes(folder: Path) -> Path:
    return one(folder, safetensors(GOOD, length=2**63 - 1))


@refused("has a header of 33,554,432 bytes")
def header_of_many_megabytes(folder: Path) -> Path:
    return one(folder, safetensors(b" " * 2**25))


@refused("nested too deeply")
def header_without_end(folder: Path) -> Path:
    return one(folder, safetensors(b'{"w":' * 100_000))


@refused("claims F32 .1000000, 1000000., but holds 16 bytes")
def tensor_of_terabytes(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 16]}}))


@refused("more than any memory holds")
def shape_that_overflows(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}}, b""))


@refused("which is no tensor")
def negative_shape(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}}))


@refused("which is no tensor")
def negative_offset(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}}))


@refused("lies at 1,000 to 1,016, 0 is where it belongs")
def offset_beyond_the_end(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [1000, 1016]}}))


@refused("lies at 0 to 16, 16 is where it belongs")
def tensors_that_share_bytes(folder: Path) -> Path:
    return one(folder, safetensors({**GOOD, "v": GOOD["w"]}))


@refused("holds 4,112 bytes of tensors, and describes 16 of them")
def bytes_that_nobody_describes(folder: Path) -> Path:
    return one(folder, safetensors(GOOD, bytes(4112)))


@refused("which is no tensor")
def type_of_nobody(folder: Path) -> Path:
    return one(folder, safetensors({"w": {"dtype": ["F32"], "shape": [2, 2], "data_offsets": [0, 16]}}))


# -- shard indices -----------------------------------------------------------------------------------------


@refused("names '../secret.safetensors', which is no .safetensors file of the folder")
def shard_of_the_folder_above(folder: Path) -> Path:
    raw(folder, safetensors(GOOD), "secret.safetensors")
    return sharded(folder, w="../secret.safetensors")


@refused("names '/etc/passwd'")
def shard_with_an_absolute_path(folder: Path) -> Path:
    return sharded(folder, w="/etc/passwd")


@refused("names 'a/../a.safetensors'")
def shard_by_a_way_round(folder: Path) -> Path:
    return sharded(folder, w="a/../a.safetensors")


@refused("names 'pytorch_model.bin'")
def shard_that_is_a_pickle(folder: Path) -> Path:
    inner = sharded(folder, w="pytorch_model.bin")
    raw(inner, PICKLE, "pytorch_model.bin")
    return inner


@refused("b.safetensors cannot be opened")
def shard_that_is_a_link(folder: Path) -> Path:
    inner = sharded(folder, w="b.safetensors")
    (inner / "b.safetensors").symlink_to(raw(folder, safetensors(GOOD), "secret.safetensors"))
    return inner


@refused("b.safetensors is no regular file")
def shard_that_is_a_folder(folder: Path) -> Path:
    inner = sharded(folder, w="b.safetensors")
    (inner / "b.safetensors").mkdir()
    return inner


@refused("b.safetensors cannot be opened")
def shard_that_is_missing(folder: Path) -> Path:
    return sharded(folder, w="a.safetensors", v="b.safetensors")


@refused("v lies in a.safetensors, which does not hold it")
def shard_without_its_tensor(folder: Path) -> Path:
    return sharded(folder, v="a.safetensors")


@refused("holds no weight_map")
def shards_that_are_no_names(folder: Path) -> Path:
    return sharded(folder, w=[["a.safetensors"]])


# -- what goes beside the artefact -------------------------------------------------------------------------


@refused("tokenizer.json cannot be opened")
def tokenizer_that_is_a_link(folder: Path) -> Path:
    inner = one(folder, safetensors(GOOD))
    (inner / "tokenizer.json").symlink_to("/etc/passwd")
    return inner


@refused("vocab.txt is no regular file")
def vocabulary_that_is_a_pipe(folder: Path) -> Path:
    inner = one(folder, safetensors(GOOD))
    os.mkfifo(inner / "vocab.txt")
    return inner


@refused("have more than 67,108,864 bytes")
def tokenizer_that_is_too_large(folder: Path) -> Path:
    inner = one(folder, safetensors(GOOD))
    hole(inner / "tokenizer.json", 2**27)
    return inner
