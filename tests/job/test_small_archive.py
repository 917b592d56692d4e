"""Training for a small archive: what it gives, what it tells, and that nothing changes where the download does not count."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.budget import Budget, Quantity
from slimline.core.plan import Recovery
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.samples import Samples
from slimline.job import _PythonTask, small_archive
from slimline.job.context import Job, open_job
from slimline.job.finishing import finish
from slimline.job.found import Found
from slimline.job.prepare import prepare
from slimline.job.recovery import COARSENESS, for_archive, usual_steps
from slimline.job.search import search
from slimline.job.small_archive import KEPT, MORE, Stage, _front, _more, stages_for, train_for_archive
from slimline.model.recover import Distillation
from slimline.search.drops import believed_by_size
from slimline.store.cache import Cache

recovery = import_module("slimline.job.recovery")


class Few:
    """Two classes that three of thirty inputs tell apart."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(0)
        self.x = torch.randn(1600, 30, generator=made)
        self.y = (self.x[:, 0] + self.x[:, 1] * self.x[:, 2] > 0).long()

    def example(self) -> Samples:
        return Samples.of(self.x[:2])

    def data(self, split: str) -> Samples:
        part = {"train": slice(0, 800), "search": slice(800, 1200), "holdout": slice(1200, 1600)}[split]
        return Samples.of(self.x[part], self.y[part])


def net(task: Few) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 120), nn.ReLU(), nn.Linear(120, 2))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(task.x[:800]), task.y[:800]).backward()
        optimizer.step()
    return model.eval()


def prepared(out: Path, minimize: Quantity, steps: int = 1600) -> tuple[Job, Found]:
    task = Few()
    request = Request(out=out, seconds=240, methods=("static_int8",), budget=Budget(minimize=minimize, max_drop="3%"))
    job = open_job(_PythonTask(net(task), task), request, Silent())
    found = prepare(job)
    found.schedule = found.schedule.model_copy(update={"recovery_steps": steps, "candidates": 4})
    found.space = replace(found.space, recovery=Recovery(steps=steps))
    return job, found


def test_it_is_a_fraction_of_the_smallest_candidate_within_the_allowance(tmp_path: Path) -> None:
    job, found = prepared(tmp_path / "build", "download")
    assert for_archive(job, found) and usual_steps(job, found) == 160
    search(job, found)
    job.journal.append("archive schedule", {"stages": 5, "steps": 150}, 0.0)  # as a run that goes on has it, so that the clock decides nothing here
    job.journal.append("more stages", {"stages": 0}, 0.0)
    train_for_archive(job, found, halfwidth=0.0)
    base = found.baseline_measurement.quality
    assert base is not None and found.small
    for trial in found.small:
        m = trial.measurement
        assert m is not None and m.quality is not None and trial.plan.recovery.penalty > 0
        assert found.quantized[trial.plan.digest].plan == trial.plan and found.space.choice(trial.plan) is not None
    assert any(t.measurement is not None and base - (t.measurement.quality or 0.0) <= 0.03 for t in found.small)
    assert [getattr(d.method, "rate", 0) for d in found.small[0].plan.decisions] == [COARSENESS, COARSENESS]  # other options beat them untrained
    smallest = found.small[0].measurement
    untrained = [t.measurement for t in found.trials if t.measurement is not None and not t.violations]
    assert smallest is not None and smallest.download_bytes < 0.7 * min(m.download_bytes for m in untrained)
    prices = [e["price"] for e in job.journal.events("price")]
    kept = [e["kept"] for e in job.journal.events("price")]
    assert len(prices) > 3 and all((b > a) == k for a, b, k in zip(prices, prices[1:], kept, strict=False))
    final = finish(job, found, found.small[0], 0.03)
    assert final.trial.measurement is not None and final.trial.measurement.download_bytes == smallest.download_bytes
    assert final.trial.measurement.quality == smallest.quality


@pytest.mark.parametrize(("step", "planned"), [(1e-4, (16, 180)), (0.01, (16, 150)), (0.1, (4, 80)), (10.0, (0, 0))])
def test_stages_fill_the_time_that_is_left(step: float, planned: tuple[int, int]) -> None:
    stages, steps = stages_for(40.0, step, measured=1.0, most=187)
    assert (stages, steps) == planned and stages * (steps * step + 1.0) <= 40.0


def test_a_stage_that_the_clock_cut_off_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on could not make it again, and would have to choose other finalists after the holdout was opened."""
    asked: list[Any] = []
    fakes = {"trained": lambda *given: True, "_measured": lambda *given: asked.append(given), "_stages": lambda *given: (2, 10)}
    for name, fake in {**fakes, "_start": lambda found: (SimpleNamespace(digest="start"), SimpleNamespace(training=SimpleNamespace(module=None)))}.items():
        monkeypatch.setattr(small_archive, name, fake)
    monkeypatch.setattr(small_archive, "_how", lambda job, found, price: Distillation(steps=0, penalty=price))
    job: Any = SimpleNamespace(
        request=SimpleNamespace(budget=Budget(max_drop=0.004), seed=0), train="samples", cache=[], spent={}, progress=SimpleNamespace(stage=lambda *given: None)
    )
    job.clock = SimpleNamespace(left=60.0, elapsed=0.0)
    found: Any = SimpleNamespace(baseline_measurement=SimpleNamespace(quality=0.9), answers=None, schedule=SimpleNamespace(recovery_steps=100))
    train_for_archive(job, found, halfwidth=0.001)
    assert not asked


def test_a_run_that_goes_on_goes_back_to_the_same_stage_without_training_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three stages is said to have lost half of all answers; killed then, or at the end, the run goes on with what its cache holds."""

    def fresh(cache: Cache | None) -> tuple[Job, Found]:
        job, found = prepared(tmp_path / str(len(runs)), "download", steps=400)
        job.journal.append("archive schedule", {"stages": 3, "steps": 20}, 0.0)
        job.journal.append("more stages", {"stages": 0}, 0.0)
        job.cache = cache or job.cache
        return job, found

    def measured(*given: Any) -> Stage:
        stages.append(made := told(*given))
        return replace(made, drop=0.5) if len(stages) == 2 else made

    def counting(*given: Any, **options: Any) -> int:
        trainings.append(given[4].steps)
        if len(trainings) == stop:
            raise KeyboardInterrupt
        return distil(*given, **options)

    told, distil = small_archive._measured, recovery.distil
    monkeypatch.setattr(small_archive, "_measured", measured)
    monkeypatch.setattr(recovery, "distil", counting)
    runs, cache, stages, trainings = list[Any](), None, list[Stage](), list[int]()
    for stop in (3, 0, 0):
        stages.clear()
        trainings.clear()
        job, found = fresh(cache)
        with pytest.raises(KeyboardInterrupt) if stop else nullcontext():
            train_for_archive(job, found, halfwidth=0.0)
        cache = cache or job.cache
        runs.append(([{**e, "seconds": 0} for e in job.journal.events("price")], [t.plan.digest for t in found.small], len(trainings)))
    assert [trained for *_, trained in runs] == [3, 1, 0], "the third was cut off, and is all that is left to train"
    assert runs[1][:2] == runs[2][:2] and runs[1][0][:2] == runs[0][0]
    assert [len(made.training) for made in stages] == [1, 2, 2], "the third goes on from the first"


@pytest.mark.parametrize(("longest", "elapsed", "more"), [(10.0, 50.0, 3), (0.1, 50.0, MORE), (10.0, 79.0, 0), (10.0, 95.0, 0)])
def test_stages_that_took_less_time_than_planned_are_followed_by_more(longest: float, elapsed: float, more: int) -> None:
    kept: list[Any] = []
    stages = [{"seconds": longest}, {"seconds": 0.5 * longest}, {}]  # the last one of an older version
    journal = SimpleNamespace(last=lambda kind: kept[-1] if kept else None, append=lambda kind, data, at: kept.append(data), events=lambda kind: stages)
    job: Any = SimpleNamespace(journal=journal, clock=SimpleNamespace(seconds=100.0, elapsed=elapsed))
    assert _more(job) == more
    job.clock.elapsed = 0.0
    assert _more(job) == more, "a run that goes on keeps its own"


def test_where_bytes_of_the_file_count_nothing_is_different(tmp_path: Path) -> None:
    job, found = prepared(tmp_path / "build", "size")
    assert not for_archive(job, found) and usual_steps(job, found) == 1600


def test_a_plan_without_a_price_keeps_the_digest_that_it_had() -> None:
    assert "penalty" not in Recovery().model_dump_json() and Recovery.model_validate_json(Recovery(penalty=0.5).model_dump_json()).penalty == 0.5


def stage(size: int, drop: float, same: float) -> Stage:
    """What a stage is judged by: 5,000 samples, and as many are the holdout."""
    scores = torch.ones(5_000)
    scores[round(5_000 * same) :] = 0
    trial: Any = SimpleNamespace(measurement=SimpleNamespace(download_bytes=size), plan=SimpleNamespace(digest=str(size)))
    return Stage(trial, drop, None, [], scores)  # type: ignore[arg-type]


def fronted(*stages: Stage, limit: float) -> list[int]:
    """Download bytes of those that are kept, of an original of 1.4 MB."""
    budget = SimpleNamespace(objective=lambda measured, base: measured.download_bytes / 1.4e6)
    data = SimpleNamespace(data=lambda split: range(10_000))
    job = SimpleNamespace(request=SimpleNamespace(budget=budget), source=data, evaluation=range(5_000), classes=True)
    found = SimpleNamespace(baseline_measurement=SimpleNamespace(download_bytes=1.4e6), baseline_scores=torch.ones(5_000))
    made = [s.trial.measurement for s in stages]
    sizes = [m.download_bytes for m in made if m is not None]
    believed = dict(zip((s.trial.plan.digest for s in stages), believed_by_size(sizes, [s.drop for s in stages], [2e-6] * len(stages)), strict=True))
    return [s.trial.measurement.download_bytes for s in _front(job, found, stages, believed, limit, KEPT)]  # type: ignore[arg-type, union-attr]


def test_those_become_finalists_that_the_sequence_gains_the_most_by() -> None:
    """LeNet-5's stages of twenty minutes with 0.4 points allowed: 4,417 bytes that had lost next to nothing were left out."""
    lost = {
        43_550: -0.0006,
        17_590: 0.0012,
        8_749: 0.002,
        5_361: 0.0016,
        3_637: 0.0036,
        3_105: 0.0026,
        2_637: 0.0048,
        2_845: 0.0046,
        3_049: 0.0022,
        4_417: 0.0008,
    }
    kept = fronted(*(stage(size, drop, 0.99) for size, drop in lost.items()), limit=0.0029)
    assert 4_417 in kept and 43_550 in kept and len(kept) <= KEPT and kept == sorted(kept)
    assert fronted(stage(100, 0.0, 0.99), stage(200, 0.0, 0.99), limit=0.003) == [100], "what costs more and is no surer"
    assert fronted(stage(100, 0.03, 0.99), limit=0.003) == [], "what will not pass"


def test_the_luckiest_of_many_alike_does_not_leave_out_what_is_larger_and_surer() -> None:
    """LeNet-5: 2,429 bytes seemed to have lost 0.02 points, seven of its size 0.2 on average; it failed, and 26 KB came before it."""
    lost = {
        26_074: -0.0002,
        9_829: 0.0012,
        4_913: 0.0018,
        3_217: 0.0024,
        2_361: 0.0024,
        1_865: 0.0074,
        2_265: 0.0054,
        2_417: 0.0033,
        2_621: 0.0008,
        2_597: 0.0018,
        2_805: 0.001,
        2_429: 0.0002,
    }
    kept = fronted(*(stage(size, drop, 0.991) for size, drop in lost.items()), limit=0.0026)
    assert [k for k in kept if 2_700 < k < 26_000] and 26_074 in kept


def test_a_stage_that_will_not_pass_does_not_take_the_place_of_one_that_may() -> None:
    assert fronted(stage(5_000, 0.02, 0.97), stage(9_000, 0.001, 0.99), limit=0.003) == [9_000]


def test_of_values_milder_stages_stay_too() -> None:
    """Their drops scatter less, but they do scatter: taken to be exact, the smallest stage within the limit made all others worth nothing."""
    budget = SimpleNamespace(objective=lambda measured, base: measured.download_bytes / 1.4e6)
    job: Any = SimpleNamespace(
        request=SimpleNamespace(budget=budget), source=SimpleNamespace(data=lambda split: range(400)), evaluation=range(400), classes=False
    )
    base = torch.zeros(400)
    found: Any = SimpleNamespace(baseline_measurement=SimpleNamespace(download_bytes=1.4e6), baseline_scores=base)

    def graded(size: int, drop: float) -> Stage:
        return replace(stage(size, drop, 1.0), scores=base - drop + 0.01 * torch.randn(400, generator=torch.Generator().manual_seed(size)))

    stages = [graded(5_000, 0.0029), graded(9_000, 0.002)]
    kept = _front(job, found, stages, {s.trial.plan.digest: s.drop for s in stages}, 0.003, KEPT)
    assert [s.drop for s in kept] == [0.0029, 0.002]


@pytest.mark.parametrize(("second", "planned", "begins"), [(0.004, 2, [0.0, 1.0, 3.0]), (0.004, 1, [0.0, 1.0, 3.0]), (0.02, 2, [0.0, 1.0, 1.0])])
def test_a_stage_that_lost_clearly_more_than_it_might_is_not_gone_on_from(
    monkeypatch: pytest.MonkeyPatch, second: float, planned: int, begins: list[float]
) -> None:
    """Of three stages the first keeps 0.3 points and the second does not. The weight is the sum of the prices it was trained under; what the third begins with is told.
    Where but one was planned, the second is to keep a margin, and fails it clearly."""
    drops, started, lengths, names, rates = iter([0.0, second, 0.001]), list[float](), list[int](), list[str](), list[float]()
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)

    def built() -> Any:
        return SimpleNamespace(training=SimpleNamespace(module=copy.deepcopy(weight)))

    def trained(job: Any, answers: Any, module: nn.Linear, how: Any, samples: Any, name: str, latest: float) -> bool:
        names.append(name)
        rates.append(how.learning_rate)
        started.append(module.weight.item())
        with torch.no_grad():
            module.weight += how.penalty
        return True

    def measured(job: Any, found: Any, plan: Any, now: Any, trainings: Any, price: float, steps: int) -> Stage:
        made = stage(1000, next(drops), 0.99)
        made.trial.plan, made.trial.violations = SimpleNamespace(digest=str(steps)), (SimpleNamespace(quantity="latency"),)  # type: ignore[misc]
        lengths.append(len(trainings))
        return replace(made, weights=copy.deepcopy(now.training.module.state_dict()), training=trainings)

    fakes = {
        "trained": trained,
        "_measured": measured,
        "_stages": lambda *given: (planned, 10),
        "_more": lambda *given: 3 - planned,
        "_front": lambda job, found, stages, beliefs, limit, most: list(stages),
        "_keep": lambda found, front, beliefs: fronts.append(len(front)),
        "show_best": lambda *given, with_latency: shown.append(with_latency),
    }
    for name, fake in {**fakes, "_start": lambda found: (SimpleNamespace(digest="start"), built())}.items():
        monkeypatch.setattr(small_archive, name, fake)
    monkeypatch.setattr(small_archive, "_how", lambda job, found, price: Distillation(steps=0, penalty=price))
    events, fronts, shown = list[Any](), list[int](), list[bool]()
    job = SimpleNamespace(
        request=SimpleNamespace(budget=Budget(max_drop=0.004), seed=0),
        source=SimpleNamespace(data=lambda split: range(10_000)),
        evaluation=range(5_000),
        classes=True,
        cache=names,
        train="samples",
        spent={},
        progress=SimpleNamespace(stage=lambda *given: None),
        clock=SimpleNamespace(left=60.0, elapsed=0.0),
        journal=SimpleNamespace(append=lambda kind, data, at: events.append(data)),
    )
    found = SimpleNamespace(
        baseline_measurement=SimpleNamespace(quality=0.9), baseline_scores=torch.ones(5_000), answers=None, schedule=SimpleNamespace(recovery_steps=100)
    )
    train_for_archive(job, found, halfwidth=0.001)  # type: ignore[arg-type]
    assert started == begins and [e["kept"] for e in events] == [True, False, True]
    back = begins[2] == begins[1]
    assert [e["price"] for e in events] == [1.0, 2.0, 1.0 if back else pytest.approx(2**0.5)] and len({e["plan"] for e in events}) == 3
    assert rates == pytest.approx([2e-3, 2e-4, 2e-4]), "late stages train gently"
    assert lengths == [1, 2, 2 if back else 3] and len(set(names)) == 3
    assert shown == [False] * 3, "what a person sees is the best so far, without a latency that was not measured"
    assert fronts == [1, 2, 3], "a latency that was not measured yet rules none out"
