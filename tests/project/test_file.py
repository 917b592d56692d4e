"""The project file: what it means, and what is said about mistakes in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slimline.core.budget import Drop
from slimline.errors import UsageError
from slimline.project.file import Project, json_schema

TEXT = """\
version: 1
models:
  net:
    task: nets/task.py:small
    weights: w.safetensors
    targets: [onnxruntime]
    budgets:
      small: {max_size: 300KB, max_drop: 2%rel, time: 90s, methods: [static_int8], classes: [1, 5]}
      fast:
        max_latency: 800us
        minimize: latency
gate:
  size: 5%
  class_drop: null
"""


def load(tmp_path: Path, text: str) -> Project:
    path = tmp_path / "slimline.yaml"
    path.write_text(text)
    return Project.load(path)


def test_each_budget_on_each_target_is_an_artefact(tmp_path: Path) -> None:
    project = load(tmp_path, TEXT)
    small, fast = project.items()
    assert (small.name, fast.name) == ("net/onnxruntime/small", "net/onnxruntime/fast") and small.out == tmp_path / "build/net/onnxruntime/small"
    options = small.options()
    assert options["model"] == str(tmp_path / "nets/task.py:small") and options["weights"] == tmp_path / "w.safetensors"
    assert (options["size_bytes"], options["seconds"], options["max_drop"]) == (300_000, 90, Drop(value=0.02, relative=True, percent=False))
    assert options["classes"] == (1, 5) and fast.options()["classes"] == ()
    assert fast.options()["latency_ms"] == 0.8 and (small.line, fast.line) == (8, 9)
    assert project.file.gate.size == 0.05 and project.file.gate.class_drop is None and project.file.gate.latency == 0.1
    assert [i.name for i in project.items(("net/onnxruntime/fast",))] == [fast.name] and len(project.items(("net",))) == 2
    with pytest.raises(UsageError, match=r"no artefact 'nett'.*net/onnxruntime/small"):
        project.items(("nett",))


@pytest.mark.parametrize(("change", "says"), [
    (("max_size", "max_sise"), "line 8: models.net.budgets.small.max_sise: there is no such key. Did you mean max_size?"),
    (("300KB", "3parsecs"), "line 8: models.net.budgets.small.max_size: The size '3parsecs' is not understood. Write it like 300KB or 1.5MB."),
    (("800us", "2"), "line 10: models.net.budgets.fast.max_latency: The latency '2' is not understood"),
    (("    task: nets/task.py:small\n", ""), "line 3: models.net.task: it is missing. Add `task: task.py`."),
    (("version: 1", "version: 2"), "line 1: version: Input should be 1."),
    (("  net:", "  ../net:"), "line 3: models.../net: '../net' cannot be a name."),
    (("  size: 5%", "  size: 5%\n  lat: 3"), "line 14: gate.lat: there is no such key. Did you mean latency?"),
    (("  size: 5%", "  size: 5"), None),
    (("  size: 5%", "  size: five"), "line 13: gate.size: The share 'five' is not understood. Write it like 5% or 0.05."),
    (("2%rel", "many"), "line 8: models.net.budgets.small.max_drop: The drop 'many' is not understood"),
    (("class_drop: null", "class_drop: 60%"), "line 14: gate.class_drop: What a class may lose is a share of its samples, below a half. Write it like 10% or 0.1."),
    (("2%rel", "2%, max_class_drop: 2%rel"), "line 8: models.net.budgets.small.max_class_drop: What a class may lose is a share of its samples"),
    (("[onnxruntime]", "[]"), "line 6: models.net.targets: it is empty. Put at least one under it."),
    (("gate:", "version: 1\ngate:"), "line 12: 'version' is there already, on line 1. Keep one of them."),
    (("minimize: latency", "minimize latency"), "line 11"),
    (("models:", "modles:"), "line 2: modles: there is no such key. Did you mean models?"),
    (("[onnxruntime]", "[onnxruntme]"), "line 6: models.net.targets.0: there is no target 'onnxruntme'. Did you mean onnxruntime?"),
    (("[static_int8]", "[static_int8, zip]"), "line 8: models.net.budgets.small.methods.1: there is no method 'zip'. `slimline methods` lists them."),
    (("minimize: latency", "strategy: luck"), "line 11: models.net.budgets.fast.strategy: there is no strategy 'luck'. Known are allocate,"),
    ((TEXT, "- 1"), "line 1: keys with values belong here. Mind the indentation and the colons."),
    ((TEXT, ""), "line 1: version: it is missing."),
])  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_the_remedy(tmp_path: Path, change: tuple[str, str], says: str | None) -> None:
    assert change[0] in TEXT
    text = TEXT.replace("max_latency: 800us", "max_latency: '2'") if change == ("800us", "2") else TEXT.replace(*change)
    if says is None:
        assert load(tmp_path, text).file.gate.size == 5
        return
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value) and str(tmp_path / "slimline.yaml") in str(caught.value)


def test_the_published_schema_is_that_of_the_code() -> None:
    published = Path(__file__).parents[2] / "docs" / "slimline.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(json_schema())), "slimline init --schema > docs/slimline.schema.json"


def test_reading_a_project_imports_no_torch(tmp_path: Path) -> None:
    load(tmp_path, TEXT)
    code = "import sys; from slimline.cli import main; status = main(['run', '--dry-run']); sys.exit('torch' in sys.modules or status)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("would be made: it was not made yet") == 2, done.stderr
