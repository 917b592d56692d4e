"""The example repository, as it is committed: its own commands, against its own lock."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import slimline
from slimline.project.file import Project
from slimline.project.lock import Lock, locked_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "ci"
NAME = "points/onnxruntime/small"
COMMITTED = {"task.py", "train.py", "weights.safetensors", "slimline.yaml", "slimline.lock", "slimline.locked", "README.md", ".gitignore", ".github", ".gitlab-ci.yml", ".pre-commit-config.yaml"}  # fmt: skip
MARK = """
from pathlib import Path
import task
from slimline.store.cache import fingerprint
from slimline.trust.loading import load_weights
network = task.model()
network.load_state_dict(load_weights(Path('weights.safetensors')))
print(fingerprint(network, {}).model_dump_json())
"""


def clone(folder: Path) -> Path:
    """What is committed, and nothing that a run in the example's own folder left."""
    shutil.copytree(EXAMPLE, folder, ignore=lambda where, names: {n for n in names if Path(where) == EXAMPLE and n not in COMMITTED})
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(slimline.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments[1:]] if arguments[0] == "python" else [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def typed(paragraph: str) -> list[list[str]]:
    """The commands of the README's block after the paragraph that begins so."""
    block = re.search(rf"^{paragraph}.*?```console\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert block is not None
    return [shlex.split(line.removeprefix("$ ")) for line in block[1].splitlines()]


def green(folder: Path, commands: list[list[str]]) -> str:
    """All that they print; each ends with 0, but that a busy machine may make of latency what it likes."""
    said = ""
    for command in commands:
        done = run(folder, *command)
        said += done.stdout
        if command[1] == "check":
            found = re.findall(rf"^(pass|fail|inconclusive) +{NAME}: ([a-z ]+): (.*)$", done.stdout, flags=re.MULTILINE)
            wrong = [f for f in found if f[0] != "pass" and f[1] != "latency against the lock"]
            assert len(found) >= 3 and not wrong, done.stdout + done.stderr
        else:
            assert done.returncode == 0, done.stdout + done.stderr
    return said


def test_what_is_committed_belongs_together() -> None:
    assert {p.name for p in EXAMPLE.iterdir()} >= COMMITTED
    project = Project.load(EXAMPLE / "slimline.yaml")
    (item,) = project.items()
    entry = Lock.read(project.lock).artefacts[item.name]
    kept = locked_file(project, item.name, entry)
    assert item.name == NAME and kept is not None and kept.stat().st_size == entry.measured.size_bytes <= (item.budget.max_size or 0)
    assert entry.verdict == "pass" and entry.drop is not None and entry.drop.upper_95 <= item.budget.max_drop.value
    mark = json.loads(run(EXAMPLE, "python", "-c", MARK).stdout)
    assert (mark["architecture"], mark["weights"]) == (entry.plan["model"]["architecture"], entry.plan["model"]["weights"])


def test_a_clone_is_green_by_the_commands_of_its_readme(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    commands = typed("A clone")
    assert commands == [["slimline", "run", "--replay"], ["slimline", "check"]]
    said = green(folder, commands)
    assert "drop against the lock" in said or "byte for byte" in said
    assert json.loads((folder / "build" / NAME / "plan.json").read_text())["decisions"] == Lock.read(folder / "slimline.lock").artefacts[NAME].plan["decisions"]


def test_a_retrained_model_takes_the_locks_plan_and_is_green(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    said = green(folder, typed("Next week"))
    assert "drop against the budget" in said and "class drop against the budget" in said and "drop against the lock" in said
    assert "byte for byte" not in said and "Every site is decided alike." in said
    made, locked = json.loads((folder / "build" / NAME / "plan.json").read_text()), Lock.read(folder / "slimline.lock").artefacts[NAME].plan
    assert made["decisions"] == locked["decisions"] and made["model"]["weights"] != locked["model"]["weights"]
    report = json.loads((folder / "build" / NAME / "report.json").read_text())
    assert report["certificate"]["source"] == "user" and len({p["plan"] for p in report["pareto"]}) == 1


def test_the_readme_tells_how_what_is_committed_was_made() -> None:
    assert typed("What is committed") == [["python", "train.py"], ["slimline", "run"], ["slimline", "accept"]]
