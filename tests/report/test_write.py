from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from slimline.core.result import Report
from slimline.errors import OutputError
from slimline.report.write import write_outputs


def test_the_manifest_holds_the_digest_of_every_file(report: Report, tmp_path: Path) -> None:
    write_outputs(tmp_path, report, {"model.onnx": b"model", "plan.json": b"{}"})
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"model.onnx", "plan.json", "report.json", "report.md", "report.html"}
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest for name, digest in manifest["files"].items())
    assert {p.name for p in tmp_path.iterdir()} == {*manifest["files"], "manifest.json"}


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "is full"), (errno.EACCES, "cannot be written")])
def test_a_disk_that_refuses_leaves_nothing_half_written(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    calls = 0

    def refuse(handle: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=words):
        write_outputs(tmp_path, report, {"model.onnx": b"model"})
    assert list(tmp_path.iterdir()) == []
