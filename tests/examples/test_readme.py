"""The README says nothing that is not so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import slimline
from slimline import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_compile_and_use_public_names(code: str) -> None:
    compile(code, "README.md", "exec")
    assert set(re.findall(r"slimline\.(\w+)", code)) <= set(slimline.__all__)


def test_the_task_file_of_the_readme_is_one() -> None:
    names: dict[str, object] = {}
    exec(blocks("python")[0], names)
    assert callable(names["model"])
    assert callable(names["data"])


@pytest.mark.parametrize("line", [x.removeprefix("$ ") for b in blocks("console") for x in b.splitlines() if "slimline" in x])
def test_commands_have_the_options_that_the_readme_gives_them(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    found = cli.command_line.get_command(None, command)
    assert found is not None
    known = {o for p in found.params for o in p.opts}
    assert {a for a in arguments if a.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (ROOT / "src" / "slimline" / name).exists() or (ROOT / name).exists() or name.startswith("targets/_"), name
