"""The gate on real artefacts: planted regressions of each kind turn it red with the right sentence, a slow machine does not."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest

from slimline.cli import main
from slimline.core.registry import find
from slimline.core.trial import Latency
from slimline.project.lock import Lock, accept

NAME = "net/onnxruntime/small"


def lines(said: str) -> dict[str, tuple[str, str]]:
    """Check -> (outcome, sentence), of what ``slimline check`` printed."""
    found = re.findall(rf"^(pass|fail|inconclusive) +{NAME}: ([a-z ]+): (.*)$", said, flags=re.MULTILINE)
    return {check: (outcome, sentence) for outcome, check, sentence in found}


def untimed(planted: Any) -> None:
    """Without budgets of time: a busy machine decides nothing."""
    text = Path("slimline.yaml").read_text().replace("        max_latency: 100us\n", "") + "gate: {latency: null}\n"
    Path("slimline.yaml").write_text(text)
    planted.load()


@pytest.fixture
def accepted(planted: Any) -> Any:
    planted.put()
    accept(planted.project, [planted.item])
    return planted


REGRESSIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "1.5 points of accuracy": ({"drift": 10.0}, "drop against the lock", r"Lost 1\.52 points against the accepted artefact on 6,000 samples; with 95 % confidence at least 1\.\d+ points lost; 1\.00 points are allowed\."),
    "one class ruined": ({"ruined": 4}, "class drop against the lock", r"Against the accepted artefact, class 4 lost 100\.0 points, at least \d\d\.\d \(95 % confidence over all 5 classes together\); 10\.0 are allowed\."),
    "20 % more bytes": ({"padding": 31_000}, "size against the lock", r"The file grew by 2[01] % \(\d+ KB to \d+ KB\); 2 % more are allowed\."),
    "20 % more memory": ({"padding": 1, "memory": 6_000}, "memory against the lock", r"The memory grew by 20 % \(5 KB to 6 KB\)"),
    "more multiply-adds": ({"padding": 1, "macs": 352}, "macs against the lock", r"The number of multiply-adds grew by 10 % \(320 to 352\); 0 % more are allowed\."),
    "30 % slower and more": ({"work": 40}, "latency against the lock", r"The artefact is \d\d %? ?slower than the accepted one, both timed here side by side in 11 rounds .* 10 % slower is allowed\."),
}  # fmt: skip


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_a_planted_regression_turns_the_check_red_with_its_sentence(accepted: Any, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    how, check, sentence = REGRESSIONS[kind]
    if not check.startswith("latency"):
        untimed(accepted)
    accepted.put(**how)
    assert main(["check"]) == 3
    found = lines(capsys.readouterr().out)
    assert found[check][0] == "fail" and re.fullmatch(f"{sentence}.*", found[check][1]), found[check]
    # Nothing else is accused: neither by its own budget, nor of what did not change.
    also = {"latency against the lock", "latency against the budget"}  # a busy machine may leave these open, but not red
    assert [c for c, (outcome, _) in found.items() if outcome == "fail"] == [check]
    assert {c for c, (outcome, _) in found.items() if outcome == "inconclusive"} <= also


def test_30_percent_slower_is_red_however_busy_the_machine_is(accepted: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that counts products, on a machine that is up to five times slower from one round to the next: real times decide no test.
    busy = itertools.cycle((1.0, 5.0, 2.5))

    def latency(self: object, artifacts: list[Any], *_: object, **__: object) -> list[Latency]:
        factor = next(busy)
        times = [factor * 1e-3 * sum(n.op_type == "MatMul" for n in onnx.load_from_string(a.content).graph.node) for a in artifacts]
        return [Latency(median=t, p95=t, runs=1) for t in times]

    monkeypatch.setattr(find("targets", "onnxruntime"), "latency", latency)
    accepted.put(work=27)  # 30 products; 23 of the accepted one
    assert main(["check"]) == 3
    found = lines(capsys.readouterr().out)
    outcome, sentence = found["latency against the lock"]
    assert outcome == "fail" and sentence.startswith("The artefact is 30 % slower than the accepted one, both timed here side by side in 11 rounds")
    assert [c for c, (o, _) in found.items() if o != "pass"] == ["latency against the lock"]


def test_classes_are_held_against_the_accepted_artefact_also_where_the_whole_is_not(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    untimed(accepted)
    Path("slimline.yaml").write_text(Path("slimline.yaml").read_text().replace("{latency: null}", "{latency: null, drop: null}"))
    accepted.load()
    accepted.put(ruined=4)
    assert main(["check"]) == 3
    found = lines(capsys.readouterr().out)
    assert "drop against the lock" not in found and found["class drop against the lock"][1].startswith(
        "Against the accepted artefact, class 4 lost 100.0 points"
    )


def test_a_budget_for_each_class_needs_no_lock(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("slimline.yaml").read_text().replace("        max_latency: 100us\n", "        max_class_drop: 10%\n")
    Path("slimline.yaml").write_text(text + "gate: {class_drop: null}\n")
    planted.load()
    planted.put(ruined=4)
    assert main(["check"]) == 3
    outcome, sentence = lines(capsys.readouterr().out)["class drop against the budget"]
    assert outcome == "fail" and sentence.startswith("Against the original, class 4 lost 100.0 points, at least ")


def test_a_slow_machine_is_no_regression(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # The lock was written on a machine that took a thousandth of a millisecond: this one is many times slower, for both artefacts.
    lock = Lock.read(accepted.project.lock)
    entry = lock.artefacts[NAME]
    fast = entry.measured.model_copy(update={"latency_ms": entry.measured.latency_ms.model_copy(update={"median": 0.001})})
    Lock(artefacts={NAME: entry.model_copy(update={"measured": fast})}).write(accepted.project.lock)
    Path("slimline.yaml").write_text(Path("slimline.yaml").read_text().replace("100us", "1.4us"))
    accepted.load()
    accepted.put(padding=1)
    status = main(["check"])
    found = lines(capsys.readouterr().out)
    assert status in (0, 4) and found["latency against the lock"][0] != "fail"
    outcome, said = found["latency against the budget"]
    assert outcome != "fail" and re.search(r"on the lock's machine \(this one takes [\d.]+ times as long", said)


def test_the_accepted_artefact_itself_passes_and_all_is_told_to_machines(
    accepted: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", "--quick", "--junit", "out/j.xml", "--sarif", "out/s.sarif", "--markdown", "out/m.md"]) == 0
    assert "byte for byte" in capsys.readouterr().out
    accepted.put(padding=31_000)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["check", "--quick", "--junit", "out/j.xml", "--sarif", "out/s.sarif", "--markdown", "out/m.md"]) == 3
    said = capsys.readouterr().out
    assert "::error file=slimline.yaml,line=6,title=net/onnxruntime/small%3A size against the lock::The file grew by 21 %25" in said
    suite = ElementTree.parse("out/j.xml").getroot()[0]
    assert suite.get("name") == NAME and suite.get("failures") == "1" and suite.find(".//failure") is not None
    (result,) = json.loads(Path("out/s.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "size-against-the-lock" and result["level"] == "error"
    assert result["locations"][0]["physicalLocation"] == {"artifactLocation": {"uri": "slimline.yaml"}, "region": {"startLine": 6}}
    text = Path("out/m.md").read_text()
    assert text.startswith("<!-- slimline check slimline.yaml -->\n### Slimline fail: 1 of 5 checks fail") and "| fail | The file grew" in text


def test_what_cannot_be_decided_is_told_apart_from_what_fails(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    untimed(accepted)
    accepted.put(padding=1)
    for file in accepted.project.locked.rglob("model.onnx"):
        file.unlink()
    assert main(["check", "--junit", "j.xml"]) == 4
    said = capsys.readouterr().out
    assert lines(said)["drop against the lock"][0] == "inconclusive" and "is not here or is another file" in said
    assert "inconclusive: 1 of" in said and ElementTree.parse("j.xml").getroot()[0].find(".//error") is not None
    assert main(["check", "--allow-inconclusive", "--junit", "j.xml"]) == 0
    assert ElementTree.parse("j.xml").getroot()[0].find(".//skipped") is not None


def test_an_artefact_that_is_missing_or_out_of_date_fails_and_the_others_are_judged(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("slimline.yaml").read_text()
    Path("slimline.yaml").write_text(text + "      never: {max_drop: 2%}\n  older:\n    task: older.py\n    budgets: {small: {}}\n")
    Path("older.py").write_text(Path("task.py").read_text())
    accepted.load()
    accepted.put_as("older/onnxruntime/small")
    Path("older.py").write_text(Path("task.py").read_text() + "\n# retrained\n")
    assert main(["check", "--quick", "--junit", "out/j.xml", "--markdown", "out/m.md"]) == 3
    said = capsys.readouterr().out
    title = "artefact against the project file"
    assert f"net/onnxruntime/never: {title}: It is not up to date: it was not made yet. Run `slimline run` first." in said
    assert f"older/onnxruntime/small: {title}: It is not up to date: changed: older.py. Run `slimline run` first." in said
    assert lines(said)["artefact against the lock"][0] == "pass" and "fail: 2 of 4 checks fail" in said
    suites = {s.get("name"): s.get("failures") for s in ElementTree.parse("out/j.xml").getroot()}
    assert suites == {NAME: "0", "net/onnxruntime/never": "1", "older/onnxruntime/small": "1"}
    assert "### Slimline fail: 2 of 4" in Path("out/m.md").read_text()


def test_what_stops_the_check_of_one_artefact_is_told_and_the_others_are_judged(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    untimed(accepted)
    text = Path("slimline.yaml").read_text()
    Path("slimline.yaml").write_text(text.replace("gate:", "      odd: {max_drop: 2%, classes: [0, 7]}\ngate:"))
    accepted.load()
    accepted.put()
    accepted.put_as("net/onnxruntime/odd")
    assert main(["check", "--sarif", "s.sarif"]) == 2
    said = capsys.readouterr()
    why = "No holdout sample is of class 7, which the plan is to be for."
    assert f"net/onnxruntime/odd: artefact against the project file: {why}" in said.out and f"Error: {why}" in said.err
    assert lines(said.out)["drop against the budget"][0] == "pass"
    assert [r["message"]["text"].partition(":")[0] for r in json.loads(Path("s.sarif").read_text())["runs"][0]["results"]] == ["net/onnxruntime/odd"]


def test_without_a_lock_the_budgets_alone_decide(planted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    planted.put(padding=60_000)
    assert main(["check", "--quick"]) == 3
    said = capsys.readouterr().out
    assert "There is no slimline.lock" in said
    assert lines(said) == {"size against the budget": ("fail", "The file is 209 KB; at most 200 KB are allowed.")}


def test_an_artefact_that_the_lock_does_not_have_is_inconclusive(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Lock().write(accepted.project.lock)
    assert main(["check", "--quick"]) == 4
    assert lines(capsys.readouterr().out)["artefact against the lock"][0] == "inconclusive"


def test_a_plan_for_some_classes_is_judged_on_these_alone(accepted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    accepted.put(ruined=4)
    text = Path("slimline.yaml").read_text().replace("        max_latency: 100us\n", "") + "gate: {latency: null}\n"
    for classes, status, outcome in (("[0, 1, 2, 3]", 0, "pass"), ("[0, 4]", 3, "fail")):
        Path("slimline.yaml").write_text(text.replace("max_drop: 2%", f"max_drop: 2%\n        classes: {classes}"))
        accepted.load()
        accepted.put(ruined=4)
        assert main(["check"]) == status
        assert lines(capsys.readouterr().out)["class drop against the lock"][0] == outcome
    Path("slimline.yaml").write_text(text.replace("max_drop: 2%", "max_drop: 2%\n        classes: [0, 7]"))
    accepted.load()
    accepted.put()
    assert main(["check"]) == 2
    assert "No holdout sample is of class 7, which the plan is to be for." in capsys.readouterr().err
