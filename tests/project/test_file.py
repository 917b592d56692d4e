"""The project file: what it means, and what is said about mistakes in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slimline.cli import main
from slimline.core.budget import Drop
from slimline.core.device import Device
from slimline.core.metrics import BUILT_IN, SHARES
from slimline.errors import UsageError
from slimline.measure.quality import CLASSES, METRICS
from slimline.project.file import Project, json_schema
from slimline.project.inputs import inputs_of

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
    (("[onnxruntime]", "onnxruntime"), "line 6: models.net.targets: this is a list. Write a list: [onnxruntime]."),
    (("[onnxruntime]", "[onnxruntime]\n    device: cortex-m4-256"), "line 7: models.net.device: there is no device 'cortex-m4-256'. Did you mean cortex-m4-256k?"),
    (("[onnxruntime]", "[onnxruntime]\n    device: none.toml"), "none.toml cannot be read: No such file or directory."),
    (("[onnxruntime]", "[onnxruntime]\n    device: cortex-m4-256k"), "line 6: models.net.targets.0: cortex-m4-256k does not run onnxruntime. Write targets: ["),
    (("    weights: w.safetensors", "    metric: recal"), "line 5: models.net.metric: there is no built-in metric 'recal'. Did you mean recall? Or leave it out,"),
    (("2%rel", "60%"), "line 8: models.net.budgets.small.max_drop: 60% would allow half of all quality to be lost. Write a share of less than a half, like 1%."),
    (("[onnxruntime]", "[onnxruntme]"), "line 6: models.net.targets.0: there is no target 'onnxruntme'. Did you mean onnxruntime?"),
    (("[onnxruntime]", "[]"), "line 6: models.net.targets: it is empty. Put at least one under it."),
    (("gate:", "version: 1\ngate:"), "line 12: 'version' is there already, on line 1. Keep one of them."),
    (("minimize: latency", "minimize latency"), "line 11"),
    (("models:", "modles:"), "line 2: modles: there is no such key. Did you mean models?"),
    (("[static_int8]", "[static_int8, zip]"), "line 8: models.net.budgets.small.methods.1: there is no method 'zip'. `slimline methods` lists them."),
    (("minimize: latency", "strategy: luck"), "line 11: models.net.budgets.fast.strategy: there is no strategy 'luck'. Known are allocate,"),
    (("300KB", "yes"), "line 8: models.net.budgets.small.max_size: The size 'True' is not understood."),
    (("time: 90s", "time: .inf"), "line 8: models.net.budgets.small.time: Input should be a finite number."),
    (("      small:", "      1:"), "line 7: models.net.budgets.1: 1 is a number, and cannot be a name. Write it in quotes."),
    ((TEXT, "a: &a [*a]"), "more than 30 levels, or 100,000 keys and items, aliases counted. Write it without aliases."),
    ((TEXT, "".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '1'] * 9)}]\n" for i in range(9))), "aliases counted"),
    ((TEXT, "a: b\nc: \x00"), "line 2 holds a character that YAML does not allow: '\\x00'. Take it out."),
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


def test_a_drop_of_sixty_is_refused_where_the_metric_is_a_share_and_only_there(tmp_path: Path) -> None:
    text = TEXT.replace("weights: w.safetensors", "metric: top1").replace("2%rel", "60")
    with pytest.raises(UsageError, match=r"line 8: models\.net\.budgets\.small\.max_drop: 60 would allow half of all quality to be lost, since top1 lies"):
        load(tmp_path, text)
    with pytest.raises(UsageError, match=r"Did you mean 2%\?"):
        load(tmp_path, text.replace("max_drop: 60", "max_drop: 2"))
    assert load(tmp_path, text.replace("top1", "neg_mse")).items()[0].budget.max_drop.value == 60
    with pytest.raises(UsageError, match=r"A drop of 60 allows half .*\. Write a share of less than a half, like 1%\."):
        Drop.parse(60).allowed(0.9)


def test_a_file_that_is_not_there_is_told_by_a_dry_run_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path, TEXT)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        "Error: slimline.yaml, line 4: models.net.task: there is no nets/task.py. Make it, or mend the path, which begins where slimline.yaml lies.\n"
    )
    (tmp_path / "nets").mkdir()
    for name in ("nets/task.py", "v.safetensors"):
        (tmp_path / name).touch()
    assert main(["run", "--dry-run"]) == 2
    assert capsys.readouterr().err == "Error: slimline.yaml, line 5: models.net.weights: there is no w.safetensors. Did you mean v.safetensors?\n"
    (tmp_path / "v.safetensors").rename(tmp_path / "w.safetensors")
    assert main(["run", "--dry-run"]) == 0


def test_a_model_of_a_zoo_is_no_file_and_a_profile_lies_beside_the_project_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(Device.load("host").toml())
    (item, _) = load(tmp_path, TEXT.replace("nets/task.py:small", "timm:resnet18").replace("budgets:", "device: mine.toml\n    budgets:")).items()
    assert item.task == "timm:resnet18" and item.options()["device"] == str(tmp_path / "mine.toml")
    (tmp_path / "w.safetensors").touch()
    Project.load(tmp_path / "slimline.yaml").check_files([item])
    assert "mine.toml" in inputs_of(item).files


def test_the_names_of_metrics_are_those_that_are_there() -> None:
    assert tuple(METRICS) == BUILT_IN and set(SHARES) < set(CLASSES)


def test_the_published_schema_is_that_of_the_code() -> None:
    published = Path(__file__).parents[2] / "docs" / "slimline.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(json_schema())), "slimline init --schema > docs/slimline.schema.json"


def test_reading_a_project_imports_no_torch(tmp_path: Path) -> None:
    load(tmp_path, TEXT)
    (tmp_path / "nets").mkdir()
    for name in ("nets/task.py", "w.safetensors"):
        (tmp_path / name).touch()
    code = "import sys; from slimline.cli import main; status = main(['run', '--dry-run']); sys.exit('torch' in sys.modules or status)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("would be made: it was not made yet") == 2, done.stderr
