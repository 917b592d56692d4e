from __future__ import annotations

from pathlib import Path

import pytest

from slimline.store.cache import Cache
from slimline.store.journal import Journal
from slimline.store.private import private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_the_state_folder_and_what_is_in_it_is_closed_to_others(tmp_path: Path) -> None:
    out = tmp_path / ".hidden" / "build"
    out.mkdir(parents=True)
    for folder in (out, out.parent):
        folder.chmod(0o755)
    private(out / ".slimline" / "cache")
    assert mode(out) == mode(out.parent) == 0o755
    assert mode(out / ".slimline") == mode(out / ".slimline" / "cache") == 0o700


@pytest.mark.parametrize("make", [lambda f: Cache(f / "cache"), lambda f: Journal.open(f, {}).close()])
def test_a_state_folder_that_was_open_is_closed(tmp_path: Path, make: object) -> None:
    state = tmp_path / ".slimline"
    (state / "cache").mkdir(parents=True)
    state.chmod(0o777)
    make(state)  # type: ignore[operator]
    assert mode(state) == 0o700
