"""What is made again and what is not, what is accepted, and what differs; the compression itself is stood in for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from slimline.cli import main
from slimline.core.result import Report
from slimline.errors import BudgetNotMet, UsageError
from slimline.project.inputs import Made, opened_files, stale
from slimline.project.lock import Lock, accept
from slimline.project.run import make, pending

NAME = "net/onnxruntime/small"
DECISION = {"site": "weight", "method": {"name": "static_int8", "bits": 8}}


class Compress:
    """Notes its options, reads what a task would read, and leaves a result."""

    def __init__(self, planted: Any, **how: Any) -> None:
        self.planted, self.how, self.asked = planted, how, list[Mapping[str, Any]]()

    def __call__(self, options: Mapping[str, Any]) -> Report:
        self.asked.append(options)
        Path("numbers.txt").read_text()
        plan = options["plan"]
        self.planted.put(decisions=tuple(plan["decisions"]) if plan is not None else (DECISION,), **self.how)
        (options["out"] / ".slimline" / "made.json").unlink()
        return Report.model_validate_json((options["out"] / "report.json").read_bytes()).model_copy(update={"environment": {"numpy": "x", "machine": "m"}})


@pytest.fixture
def made(planted: Any) -> Any:
    Path("numbers.txt").write_text("1 2 3")
    compress = Compress(planted)
    record, read = make(planted.project, planted.item, compress)
    assert record == Made.read(planted.item.out) and "numbers.txt" in [p.name for p in read]
    assert compress.asked[0]["force"] and not compress.asked[0]["resume"] and compress.asked[0]["max_drop"].value == 0.02
    return planted


def why(planted: Any, **how: Any) -> str:
    return pending(planted.project, [planted.item], **how)[NAME]


def test_contents_decide_and_dates_do_not(made: Any) -> None:
    assert why(made) == ""
    for name in ("task.py", "numbers.txt"):
        before = Path(name).read_text()
        Path(name).write_text(before)  # a new date
        assert why(made) == ""
        Path(name).write_text(before + "#")
        assert why(made) == f"changed: {name}"
        Path(name).write_text(before)
    Path("numbers.txt").unlink()
    assert why(made) == "changed: numbers.txt is gone"


def test_the_entry_the_versions_and_the_results_decide_too(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path("slimline.yaml").read_text()
    Path("slimline.yaml").write_text(text.replace("max_drop: 2%", "max_drop: 3%"))
    made.load()
    assert why(made) == "changed: its entry in the project file"
    Path("slimline.yaml").write_text(text + "gate: {size: 50%}\n")  # no part of the entry
    made.load()
    assert why(made) == ""
    with monkeypatch.context() as patched:
        patched.setattr("slimline.project.inputs.version_of", lambda name: "99")
        assert why(made).startswith("changed: numpy ") and why(made).endswith(" is 99")
    (made.item.out / "model.onnx").write_bytes(b"another")
    assert why(made) == "model.onnx is not what the run wrote"
    (made.item.out / "report.json").unlink()
    (made.item.out / "model.onnx").unlink()
    assert why(made) == "model.onnx is gone"


def test_an_interrupted_run_of_the_same_inputs_goes_on(made: Any) -> None:
    record = Made.read(made.item.out)
    assert record is not None
    record.model_copy(update={"interrupted": True}).write(made.item.out)
    (made.item.out / ".slimline" / "journal.jsonl").write_text("")
    assert why(made) == "its run was interrupted"
    again = Compress(made)
    make(made.project, made.item, again)
    assert again.asked[0]["resume"] and not again.asked[0]["force"]


def test_replaying_carries_out_the_locks_plan_on_new_weights(made: Any) -> None:
    with pytest.raises(UsageError, match="has no plan for net/onnxruntime/small"):
        pending(made.project, [made.item], replay=True)
    accept(made.project, [made.item])
    assert why(made, replay=True) == ""
    Path("task.py").write_text(Path("task.py").read_text() + "# retrained")
    assert why(made, replay=True) == "changed: task.py"
    compress = Compress(made, padding=3)
    record, _ = make(made.project, made.item, compress, replay=True)
    assert compress.asked[0]["plan"]["decisions"] == [DECISION] and record.replayed and why(made, replay=True) == ""
    make(made.project, made.item, lambda options: compress(dict(options) | {"plan": {"decisions": []}}))
    assert why(made, replay=True) == "its plan is not the lock's" and why(made) == ""


def test_accepting_is_a_diff_and_copies_the_artefact(made: Any) -> None:
    shown = accept(made.project, [made.item], dry_run=True)
    assert not made.project.lock.exists() and not made.project.locked.exists()
    assert accept(made.project, [made.item]) == shown
    assert "+    verdict: pass\n" in shown and "method: {name: static_int8, bits: 8}\n" in shown
    assert (made.project.locked / NAME / "model.onnx").read_bytes() == (made.item.out / "model.onnx").read_bytes()
    assert accept(made.project, [made.item]) == ""
    make(made.project, made.item, Compress(made, padding=2_000))
    change = accept(made.project, [made.item])
    assert "+      size_bytes: " in change and "-      size_bytes: " in change and not [x for x in change.splitlines() if x[0] in "+-" and "static_int8" in x]
    report = made.item.out / "report.json"
    report.write_text(report.read_text().replace('"verdict":"pass"', '"verdict":"fail"'))
    with pytest.raises(UsageError, match=r"not up to date: report\.json is not what the run wrote"):
        accept(made.project, [made.item])


def test_a_damaged_lock_is_told_with_its_line(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    accept(made.project, [made.item])
    made.project.lock.write_text(made.project.lock.read_text().replace("verdict: pass", "verdict: fine"))
    assert main(["check", "--quick"]) == 2
    assert "slimline.lock, line 7: artefacts.net/onnxruntime/small.verdict: Input should be 'pass'" in capsys.readouterr().err


def test_diff_compares_figures_and_decisions(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    accept(made.project, [made.item])
    made.put(padding=31_000, decisions=({"site": "weight", "method": {"name": "weight_only", "bits": 4}},))
    assert main(["diff", f"lock:{NAME}", str(made.item.out)]) == 0
    said = capsys.readouterr().out
    assert (
        "1 site is decided otherwise" in said
        and f"first:  lock:{NAME}" in said
        and "larger" in said
        and "static_int8" in said
        and "weight_only" in said
        and "side by side" in said
    )
    assert main(["diff", f"lock:{NAME}", "nowhere"]) == 2
    assert "There is no result in nowhere" in capsys.readouterr().err


def test_an_unchanged_project_is_done_in_no_time_and_without_torch(made: Any) -> None:
    code = "import sys; from slimline.cli import main; status = main(['run']); sys.exit('torch' in sys.modules or status)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == f"{NAME}: up to date, pass\n", done.stderr
    assert time.monotonic() - start < 5


def test_only_files_of_the_project_that_are_read_count(tmp_path: Path) -> None:
    for name in ("in.txt", "out.txt", ".hidden/x.txt", "build/report.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with opened_files(tmp_path, tmp_path / "build") as read:
        for name in ("in.txt", ".hidden/x.txt", "build/report.json"):
            (tmp_path / name).read_text()
        (tmp_path / "out.txt").write_text("y")
    (tmp_path / "later.txt").write_text("x")
    assert [p.name for p in read] == ["in.txt"]


def test_nothing_made_is_out_of_date(planted: Any) -> None:
    assert stale(planted.item, None) == "it was not made yet" and Lock.read(planted.project.lock) == Lock()


VERDICTS = {"net/onnxruntime/small": "pass", "net/onnxruntime/fast": None, "other/onnxruntime/small": "inconclusive", "other/onnxruntime/fast": "pass"}


@pytest.mark.parametrize(("changed", "status", "made"), [
    ({}, 3, 3),  # one budget cannot be met: the others are made
    ({"net/onnxruntime/fast": "pass"}, 4, 4),
    ({"net/onnxruntime/fast": "pass", "other/onnxruntime/small": "pass"}, 0, 4),
    ({"other/onnxruntime/small": "interrupted"}, 130, 1),  # nothing is begun after that
])  # fmt: skip
def test_of_two_models_with_two_budgets_each_is_made_and_the_worst_status_is_the_runs(
    planted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], status: int, made: int
) -> None:
    Path("other.py").write_text(Path("task.py").read_text())
    text = Path("slimline.yaml").read_text().replace("        max_latency: 100us\n", "        max_latency: 100us\n      fast: {minimize: latency}\n")
    Path("slimline.yaml").write_text(text + "  other:\n    task: other.py\n    budgets: {small: {max_drop: 2%}, fast: {max_drop: 3%}}\n")
    planted.load()
    asked: list[str] = []

    def carry_out(source: object, request: Mapping[str, Any], *_: object) -> Report:
        name = request["out"].relative_to("build").as_posix()
        asked.append(name)
        verdict = (VERDICTS | changed)[name]
        if verdict is None:
            raise BudgetNotMet("No plan is that fast.", hint="Loosen max_latency.")
        planted.put_as(name)
        report = Report.model_validate_json((request["out"] / "report.json").read_bytes())
        return report.model_copy(update={"interrupted": True, "verdict": "inconclusive"} if verdict == "interrupted" else {"verdict": verdict})

    monkeypatch.setattr("slimline.commands.run.load_task", lambda options: None)
    monkeypatch.setattr("slimline.commands.run.make_request", lambda invocation, source, options: options)
    monkeypatch.setattr("slimline.commands.run.carry_out", carry_out)
    assert main(["run"]) == status
    assert asked == [n for n in VERDICTS if n in asked] and len(asked) == (3 if status == 130 else 4)
    said = capsys.readouterr().out
    assert ("net/onnxruntime/fast: fail. No plan is that fast. Loosen max_latency." in said) == ("net/onnxruntime/fast" not in changed)
    records = [Made.read(i.out) for i in planted.project.items()]
    assert sum(r is not None and not r.interrupted for r in records) == made
    # What was made is not made again, and its verdict still counts; the rest is.
    asked.clear()
    assert main(["run"]) == status and len(asked) == (4 - made if status != 130 else 2)


def test_a_budget_that_no_plan_meets_is_told_by_the_check_too(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(options: Mapping[str, Any]) -> Report:
        raise BudgetNotMet("No plan is below 10 KB.", hint="Loosen max_size.")

    with pytest.raises(BudgetNotMet):
        make(planted.project, planted.item, refuse)
    assert main(["check", "--quick"]) == 3
    assert "it was not made yet. The last run of it failed: No plan is below 10 KB. Loosen max_size." in capsys.readouterr().out
    Path("numbers.txt").write_text("1 2 3")
    make(planted.project, planted.item, Compress(planted))
    assert main(["check", "--quick"]) == 0


def test_what_a_run_writes_down_is_its_owners(made: Any) -> None:
    folders = [made.item.out / ".slimline", made.project.root / "build" / ".slimline", made.project.root / "build" / ".slimline" / "started"]
    assert [oct(f.stat().st_mode & 0o777) for f in folders] == ["0o700"] * 3


def test_what_stops_a_run_names_the_line_of_its_artefact(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("task.py").write_text("def model(): raise ValueError('no such network')")
    assert main(["run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Error: slimline.yaml, line 6: {NAME}: ") and "no such network" in said


def test_what_was_made_is_logged_after_all_of_it_and_what_was_up_to_date_is_not(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[Path, str]] = []
    monkeypatch.setattr("slimline.commands.run.check_logging", lambda to: None)
    monkeypatch.setattr("slimline.commands.run.log_run", lambda folder, to: logged.append((folder, to)))
    monkeypatch.setattr("slimline.commands.run.load_task", lambda options: None)
    monkeypatch.setattr("slimline.commands.run.make_request", lambda invocation, source, options: options)
    monkeypatch.setattr("slimline.commands.run.carry_out", lambda source, options, *_: Compress(made)(options))
    assert main(["run", "--mlflow", "http://127.0.0.1:9"]) == 0 and logged == []
    assert main(["run", "--force", "--mlflow", "http://127.0.0.1:9"]) == 0 and logged == [(made.item.out, "http://127.0.0.1:9")]
    assert main(["run", "--force"]) == 0 and len(logged) == 1


def test_without_mlflow_nothing_is_begun(made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("slimline.core.extras.importlib.util.find_spec", lambda name: None)
    for command in (["run", "--force"], ["compress", "task.py"]):
        assert main([*command, "--mlflow", "local"]) == 2
        assert "pip install 'slimline[mlflow]'" in capsys.readouterr().err
