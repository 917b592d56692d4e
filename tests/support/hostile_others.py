"""Malicious and damaged files of further kinds: TensorFlow Lite, PyTorch programs, weights."""

from __future__ import annotations

from pathlib import Path

from support.hostile import PICKLE, Corpus, raw, zipped

CORPUS = Corpus()
case = CORPUS.case


def flatbuffer() -> bytes:
    """The beginning of a TensorFlow Lite model: a root table whose fields lie beyond the end."""
    return b"\x1c\0\0\0TFL3" + bytes(20) + b"\x14\0\0\0\0\0\x0e\0\x18\0\x14\0\x10\0\x0c\0\x08\0\x04\0\x0e\0\0\0\xff\xff\xff\x7f"


@case
def flatbuffer_cut_off(folder: Path) -> Path:
    return raw(folder, flatbuffer()[:30], "model.tflite")


@case
def flatbuffer_by_another_name(folder: Path) -> Path:
    return raw(folder, flatbuffer())


@case
def flatbuffer_as_keras_file(folder: Path) -> Path:
    return raw(folder, flatbuffer(), "model.keras")


@case
def program_that_is_a_pickle(folder: Path) -> Path:
    return raw(folder, PICKLE, "model.pt2")


@case
def program_that_holds_pickles(folder: Path) -> Path:
    """The archive of ``torch.export``, in which every part that can be pickled is."""
    parts = ("archive_format", "models/model.json", "data/constants/tensor_0", "data/weights/model.pt", "data/sample_inputs/model.pt", "data.pkl")
    return raw(folder, zipped({f"model/{name}": PICKLE for name in parts}), "model.pt2")


@case
def checkpoint_of_a_trainer(folder: Path) -> Path:
    return raw(folder, PICKLE, "pytorch_model.bin")


@case
def saved_model_graph(folder: Path) -> Path:
    return raw(folder, b"\x08\x01\x12\xff\xff\xff\xff\x0f", "saved_model.pb")


@case
def weights_alone_cut_off(folder: Path) -> Path:
    return raw(folder, (2**40).to_bytes(8, "little") + b"{", "model.safetensors")
