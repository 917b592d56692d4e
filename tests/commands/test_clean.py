from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slimline import cli
from slimline.store.journal import Journal


def fill(run: Path) -> None:
    (run / ".slimline" / "cache" / "a.safetensors").write_bytes(b"x" * 3000)
    (run / ".slimline" / "finalists").mkdir()
    (run / ".slimline" / "finalists" / "b.onnx").write_bytes(b"x" * 2000)
    (run / ".slimline" / "journal.jsonl").write_text("")
    (run / ".slimline" / "made.json").write_text("{}")


def names(run: Path) -> set[str]:
    return {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}


def test_caches_go_and_everything_else_stays(tmp_path: Path, put_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    runs = [put_run(tmp_path / "build" / n) for n in ("a", "deep/b")]
    for run in runs:
        fill(run)
    before = names(runs[0])
    assert cli.main(["clean", str(tmp_path / "build"), "--dry-run"]) == 0
    assert "10 KB would be removed" in capsys.readouterr().out and names(runs[0]) == before
    assert cli.main(["clean", str(tmp_path / "build")]) == 0
    said = capsys.readouterr().out
    assert said.count("5 KB in 2 files") == 2 and "10 KB removed" in said
    for run in runs:
        assert names(run) == before - {".slimline/cache/a.safetensors", ".slimline/finalists/b.onnx"}
        assert not (run / ".slimline" / "cache").exists()
    assert cli.main(["clean", str(tmp_path / "build")]) == 0 and "0 B removed" in capsys.readouterr().out


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path, put_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = put_run(tmp_path / "build")
    fill(run)
    with Journal.open(run / ".slimline", {}):
        assert cli.main(["clean", str(run)]) == 0
    assert "left alone" in capsys.readouterr().out and (run / ".slimline" / "cache" / "a.safetensors").exists()


def test_a_cache_that_targets_share_is_busy_with_any_of_them(tmp_path: Path, put_run: Callable[..., Path]) -> None:
    shared, run = tmp_path / "build", put_run(tmp_path / "build" / "onnxruntime")
    (shared / ".slimline" / "cache").mkdir(parents=True)
    (shared / ".slimline" / "cache" / "a.safetensors").write_bytes(b"x")
    with Journal.open(run / ".slimline", {}):
        cli.main(["clean", str(shared)])
        assert (shared / ".slimline" / "cache" / "a.safetensors").exists()
    cli.main(["clean", str(shared)])
    assert not (shared / ".slimline" / "cache").exists()


def test_links_are_not_followed_and_strangers_stay(tmp_path: Path, put_run: Callable[..., Path]) -> None:
    run, elsewhere = put_run(tmp_path / "build"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    (run / ".slimline" / "cache" / "inner").mkdir()
    (run / ".slimline" / "cache" / "link").symlink_to(elsewhere / "precious")
    (run / ".slimline" / "finalists").symlink_to(elsewhere)
    (tmp_path / "build" / "linked").symlink_to(elsewhere)
    assert cli.main(["clean", str(run)]) == 0
    assert (elsewhere / "precious").read_text() == "mine" and (run / ".slimline" / "cache" / "inner").is_dir()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert cli.main(["clean", str(tmp_path / "none")]) == 2
