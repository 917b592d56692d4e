"""Weights come from safetensors and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slimline.errors import ModelError
from slimline.trust.loading import load_weights


def test_tensors_come_back_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3), "b.c": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert sorted(loaded) == ["a", "b.c"] and torch.equal(loaded["a"], torch.arange(3))


def test_pickle_is_refused_unopened_with_its_remedy(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path, "opened"),))  # type: ignore[return-value]

    torch.save({"w": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"pickle.*safetensors\.torch\.save_file"):
        load_weights(tmp_path / "w.pth")
    assert not (tmp_path / "opened").exists()


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights file .*none\.safetensors"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x01" * 40)
    with pytest.raises(ModelError, match=r"bad\.safetensors \(40 bytes\) cannot be read"):
        load_weights(tmp_path / "bad.safetensors")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(ModelError, match=r"w\.h5 is no \.safetensors file"):
        load_weights(tmp_path / "w.h5")
