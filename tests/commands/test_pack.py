from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimline import cli


def test_pack_and_unpack_give_the_file_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = b"a model of some kind " * 200
    (tmp_path / "model.onnx").write_bytes(payload)
    assert cli.main(["pack", str(tmp_path)]) == 0
    assert "x smaller than model.onnx" in capsys.readouterr().out
    assert (tmp_path / "model.slim").stat().st_size < len(payload) / 10
    assert cli.main(["unpack", str(tmp_path / "model.slim"), "--out", str(tmp_path / "again.onnx")]) == 0
    assert (tmp_path / "again.onnx").read_bytes() == payload


def test_pack_says_in_json_what_the_archive_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 5000)
    assert cli.main(["pack", str(tmp_path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["archive_bytes"] == (tmp_path / "model.slim").stat().st_size
    assert figures["original_bytes"] == 5000


def test_a_damaged_archive_ends_with_2_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 5000)
    cli.main(["pack", str(tmp_path)])
    archive = tmp_path / "model.slim"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert cli.main(["unpack", str(archive), "--out", str(tmp_path / "again.onnx")]) == 2
    assert "damaged" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.slim"]


def test_unpack_replaces_nothing_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 500)
    cli.main(["pack", str(tmp_path)])
    arguments = ["unpack", str(tmp_path / "model.slim"), "--out", str(tmp_path / "model.onnx")]
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--force"]) == 0


def test_a_place_that_cannot_be_written_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 500)
    cli.main(["pack", str(tmp_path)])
    assert cli.main(["unpack", str(tmp_path / "model.slim"), "--out", str(tmp_path / "model.onnx" / "again")]) == 2
    said = capsys.readouterr().err
    assert "model.onnx/again cannot be used: Not a directory" in said and said.count("\n") == 1


def test_pack_names_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(tmp_path)]) == 2
    assert "no model" in capsys.readouterr().err


def test_pack_names_the_folders_of_several_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"schema": 1, "runs": [{"target": "torch"}]}')
    assert cli.main(["pack", str(tmp_path)]) == 2
    assert f"Give one of them: {tmp_path / 'torch'}." in capsys.readouterr().err
