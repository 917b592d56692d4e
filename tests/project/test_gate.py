"""The gate's statistics, on simulated scores and times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slimline.core.budget import Drop
from slimline.measure.certify import drop_interval
from slimline.measure.classes import class_drops
from slimline.project.evidence import Drops, Evidence, Figures
from slimline.project.file import BudgetEntry, Gate, Item, ModelEntry
from slimline.project.gate import class_outcome, findings, latency_within, slower_by, verdict

FIGURES = Figures(size=1000, download=900, memory=2000, macs=100)
ALLOWED, SAMPLES, MODELS = 0.02, 1000, 200


def item(**budget: object) -> Item:
    from pathlib import Path

    entry = BudgetEntry.model_validate(budget)
    return Item("net/onnxruntime/small", Path(), Path("build"), ModelEntry(task="task.py", budgets={"small": entry}), "onnxruntime", entry, 6)


def passed(true_drop: float, draw: np.random.Generator) -> bool:
    """Whether the whole gate lets a model through that loses ``true_drop`` more samples than it wins, of 5 % that differ."""
    fate = draw.random(SAMPLES)
    lost, won = (0.05 + true_drop) / 2, (0.05 - true_drop) / 2
    original = torch.from_numpy((fate < 0.9).astype(np.float32))
    compressed = original.clone()
    compressed[torch.from_numpy(fate < lost)] = 0
    compressed[torch.from_numpy(fate > 1 - won)] = 1
    drops = Drops(drop_interval(original, compressed, ALLOWED)[0])
    evidence = Evidence(
        FIGURES, FIGURES, locked_at_hand=True, quality=0.9, against_original=drops, against_locked=drops, rounds=((1.0, 1.0),) * 11, recorded_ms=1.0
    )
    return verdict(findings(item(max_drop=ALLOWED), Gate(drop=Drop(value=ALLOWED)), evidence, has_lock=True)) == "pass"


def test_of_200_models_exactly_at_the_allowance_at_most_5_percent_pass() -> None:
    draw = np.random.default_rng(0)
    at_the_allowance = sum(passed(ALLOWED, draw) for _ in range(MODELS))
    error = (0.05 * 0.95 / MODELS) ** 0.5
    assert at_the_allowance / MODELS <= 0.05 + 2.33 * error  # a right gate misses this bound in 1 % of all seeds; this one is fixed
    assert at_the_allowance > 0  # and is no gate that lets nothing through
    assert sum(passed(0.0, draw) for _ in range(20)) >= 14


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "pass"), (1.3, "fail"), (0.7, "pass"), (1.10, "inconclusive")])
def test_latency_is_judged_by_the_ratio_of_each_round(factor: float, outcome: str) -> None:
    draw = np.random.default_rng(0)
    busy = draw.lognormal(0.5, 0.5, 11)  # whatever else the machine does hits both of a round
    noise = draw.normal(1.0, 0.03, 11)
    assert slower_by(list(factor * noise), 0.10)[0] == outcome
    rounds = tuple((float(b), float(b * factor * n)) for b, n in zip(busy, noise, strict=True))
    assert latency_within(1.10, rounds, 1.0)[0] == outcome
    assert latency_within(1.10, tuple((100 * a, 100 * b) for a, b in rounds), 1.0)[0] == outcome  # a machine a hundred times slower


def test_without_an_accepted_artefact_the_clock_of_this_machine_counts() -> None:
    assert latency_within(1.1, ((None, 1.0),) * 11, None)[0] == "pass"
    assert latency_within(0.9, ((None, 1.0),) * 11, None) == ("fail", "A call takes 1 ms, 95 % limits 1 ms and 1 ms; at most 0.9 ms are allowed.")


def test_a_device_s_latency_is_called_an_estimate_and_scaled_by_nothing() -> None:
    rounds = ((4.0, 5.0),) * 11
    assert latency_within(4.5, rounds, 1.0, estimated=True) == ("fail", "A call takes 5 ms (estimate); at most 4.5 ms are allowed.")
    outcome, said = slower_by([5 / 4] * 11, 0.10, estimated=True)
    assert (
        outcome == "fail"
        and said == "The artefact is 25 % slower than the accepted one, both by the device's latency table (estimate); 10 % slower is allowed."
    )


def test_classes_are_ruined_within_or_too_rare_to_tell() -> None:
    labels = torch.arange(3000) % 3

    def judged(lost: int, samples: int = 3000) -> tuple[str, str]:
        scores = torch.ones(samples)
        scores[(labels[:samples] == 1).nonzero()[:lost]] = 0
        drops = class_drops(torch.ones(samples), scores, labels[:samples])
        return class_outcome(Drops(drop_interval(torch.ones(samples), scores, 0.1)[0], drops), Drop(value=0.1), "the original")

    assert judged(0)[0] == judged(70)[0] == "pass"
    assert judged(200)[0] == "fail" and "class 1 lost 20.0 points" in judged(200)[1]
    outcome, sentence = judged(0, 60)
    assert outcome == "inconclusive" and "3 of 3 classes have too few samples" in sentence


@pytest.mark.parametrize(("lost", "source", "outcome", "says"), [
    (0, "user", "pass", "Against the original, no class lost more than 10.0 points"),
    (200, "user", "fail", "Against the original, class 1 lost 20.0 points"),
    (0, "from_train", "inconclusive", "the original has seen these samples"),
])  # fmt: skip
def test_a_budget_can_say_what_any_class_may_lose(lost: int, source: str, outcome: str, says: str) -> None:
    labels, scores = torch.arange(3000) % 3, torch.ones(3000)
    scores[(labels == 1).nonzero()[:lost]] = 0
    drops = Drops(drop_interval(torch.ones(3000), scores, 0.3)[0], class_drops(torch.ones(3000), scores, labels))
    evidence = Evidence(FIGURES, quality=1.0, source=source, against_original=drops)  # type: ignore[arg-type]
    asked = item(max_drop="30%", max_class_drop="10%")
    found = {f.title: f for f in findings(asked, Gate(class_drop=None), evidence, has_lock=False)}
    one = found["class drop against the budget"]
    assert one.outcome == outcome and says in one.sentence
    evidence = Evidence(FIGURES, quality=1.0, against_original=Drops(drops.interval))
    assert [(f.check, f.outcome) for f in findings(asked, Gate(), evidence, has_lock=False)][-1] == ("class drop", "inconclusive")
    assert "class drop" not in {f.check for f in findings(item(), Gate(), evidence, has_lock=False)}


def test_without_data_the_drop_is_inconclusive_and_a_quick_check_leaves_it_out() -> None:
    found = findings(item(max_size=1000), Gate(), Evidence(FIGURES), has_lock=False)
    assert [(f.check, f.outcome) for f in found] == [("size", "pass"), ("drop", "inconclusive")]
    quick = findings(item(max_size=999), Gate(), Evidence(FIGURES, quick=True), has_lock=False)
    assert [(f.check, f.outcome) for f in quick] == [("size", "fail")]
