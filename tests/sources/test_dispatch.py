"""Which way in an argument takes, and what is refused with which remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from slimline.errors import ModelError, SlimlineError, UsageError
from slimline.model.sites import find_sites
from slimline.sources.dispatch import open_source


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    (path.parent / "data.py").write_text("import torch\n\ndef example():\n    return torch.ones(3, 8)\n")
    return path


def test_exported_program_is_opened_only_where_it_is_trusted(program: Path) -> None:
    with pytest.raises(UsageError, match="give --trust"):
        open_source(str(program))
    source = open_source(str(program), data=program.parent / "data.py", trusted=True)
    sites, _ = find_sites(source.model(), source.example())
    assert "0#channels" in {s.id for s in sites} and source.model()(torch.zeros(5, 8)).shape == (5, 8)


def test_damaged_program_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "data.py").write_text("import torch\n\ndef example():\n    return torch.ones(3, 8)\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_source(str(tmp_path / "net.pt2"), data=tmp_path / "data.py", trusted=True).model()


@pytest.mark.parametrize(("name", "says"), [
    ("net.pth", "is a pickle"),
    ("net.pkl", "is a pickle"),
    ("net.joblib", "is a pickle"),
    ("net.safetensors", "with --weights"),
    ("net.tflite", "tf2onnx.convert --tflite net.tflite"),
    ("net.pb", "give the folder that it lies in.*tf2onnx.convert --graphdef net.pb"),
])  # fmt: skip
def test_what_is_refused_says_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=says):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize(("config", "weights", "says"), [
    ({"architectures": ["BertModel"]}, "pytorch_model.bin", "holds no model.safetensors and no model.safetensors.index.json, but pytorch_model.bin"),
    ({"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}, "model.safetensors", "asks for Python code of its own"),
    ([], "model.safetensors", "is no JSON object"),
    ("[" * 100_000, "model.safetensors", "is no JSON"),
])  # fmt: skip
def test_folders_that_are_no_safe_hugging_face_models(tmp_path: Path, config: object, weights: str, says: str) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (tmp_path / weights).write_bytes(b"x")
    with pytest.raises(SlimlineError, match=says):
        open_source(str(tmp_path))
