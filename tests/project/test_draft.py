"""``slimline init`` proposes what the model and its samples can keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from slimline.cli import main
from slimline.project.draft import Look, certifiable, draft
from slimline.project.file import Project, json_schema


def load(tmp_path: Path, text: str) -> Project:
    (tmp_path / "slimline.yaml").write_text(text)
    return Project.load(tmp_path / "slimline.yaml")


def test_init_writes_a_project_file_that_can_be_read(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "task.py"]) == 2
    assert "slimline.yaml is there already" in capsys.readouterr().err
    assert main(["init", "task.py", "--force"]) == 0
    text = Path("slimline.yaml").read_text()
    assert "# task: 320 parameters (1.28 KB as float32), 320 multiply-adds; 6,000 holdout samples of your own" in text
    project = Project.load(Path("slimline.yaml"))
    assert [i.name for i in project.items()] == ["task/onnxruntime/small", "task/onnxruntime/fast"]
    assert project.items()[0].budget.max_size == 1_000 and project.items()[0].task == "task.py"
    # What editors check it by lies where a clone has it.
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", text, flags=re.MULTILINE)
    assert json.loads(Path(named).read_text()) == json.loads(json.dumps(json_schema()))
    assert not any(part.startswith(".") or part == "build" for part in Path(named).parts)


def test_allowances_are_what_the_samples_can_decide(tmp_path: Path) -> None:
    many = load(tmp_path, draft("net", "task.py", Look(1_000_000, 10**7, 10_000, "user", 1_000))).file
    few = load(tmp_path, draft("net", "task.py", Look(1_000_000, 10**7, 200, "user", 20))).file
    none = load(tmp_path, draft("net", "task.py", Look(1_000_000, 10**7, None, None, None))).file
    assert many.models["net"].budgets["small"].max_drop.value == 0.01 and many.models["net"].budgets["small"].max_size == 1_400_000
    assert few.models["net"].budgets["small"].max_drop.value >= 2 * certifiable(200)
    assert few.gate.class_drop is not None and few.gate.class_drop.value >= certifiable(20)
    assert none.gate.class_drop is None and "no data" in (tmp_path / "slimline.yaml").read_text()
