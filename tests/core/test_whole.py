from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from slimline.core.whole import write_whole, written
from slimline.errors import OutputError


def test_a_refused_file_leaves_what_was_there_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"first")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match=r"model\.onnx") as caught:
        write_whole(file, b"second")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"model.onnx": b"first"}


def test_a_folder_that_is_a_file_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        write_whole(tmp_path / "file" / "a", b"")
    for out in (tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OutputError, match="Name another place"), written(out):
            out.mkdir(parents=True)


def test_a_place_where_no_folder_can_be_made_is_the_users_to_mend() -> None:
    out = Path("/proc/slimline/run")  # its parent cannot be made
    with pytest.raises(OutputError, match="/proc/slimline"), written(out):
        out.mkdir(parents=True)


def test_a_file_of_ours_that_is_missing_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written(tmp_path):
        (tmp_path / "plan.json").read_bytes()


def test_another_folder_that_refuses_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), written(tmp_path / "build"):
        raise PermissionError(errno.EACCES, "Permission denied", "/etc/slimline")
