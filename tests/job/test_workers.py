"""What a job does with workers that answer, fail, die or take too long; the workers are scripted ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimline.core.plan import Fingerprint
from slimline.core.progress import Silent
from slimline.core.request import Reference, Request
from slimline.core.workers import Answer
from slimline.errors import ModelError
from slimline.job.workers import Bench, Question, Serve, Shared, at_work, share
from slimline.search.schedule import Clock
from slimline.store.cache import Cache
from slimline.store.journal import Journal

TASK = """
import torch
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
def example():
    return torch.zeros(2, 4)
"""


@dataclass(frozen=True)
class Number:
    """A task that stores its number."""

    name: str
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"number {self.name}"

    def work(self, bench: Bench) -> None: ...


@dataclass
class Scripted:
    """``act(worker, task)``: the answer to a task; ``None`` if it never comes."""

    cache: Cache
    act: Callable[[int, Number], Answer | None]
    alive: tuple[int, ...] = (1, 2)
    opening: str = ""
    gone: int = 0
    apart: bool = False
    asked: list[tuple[int, Question]] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)

    def threads(self, busy: int) -> int:
        return 1

    def ask(self, worker: int, question: Question) -> None:
        self.asked.append((worker, question))

    def wait(self, seconds: float) -> list[Answer]:
        answers, self.asked = self.asked, []
        found = []
        if self.gone:
            self.dismiss(self.gone)
            found, self.gone = [Answer(self.gone, died="signal 9")], 0
        for worker, question in answers:
            if question.last:
                found.append(Answer(worker, {}))
                continue
            if question.task is None:
                found.append(Answer(worker, {}, self.opening))
                continue
            assert isinstance(question.task, Number)
            self.log.append((worker, question.task.name))
            answer = self.act(worker, question.task)
            if answer is None:
                continue
            if answer.died:
                self.alive = tuple(w for w in self.alive if w != worker)
            elif not answer.error and not self.apart:
                self.cache.put(question.task.name, {}, 1)
            found.append(answer)
        return found

    def dismiss(self, worker: int) -> None:
        self.alive = tuple(w for w in self.alive if w != worker)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    journal = Journal.open(tmp_path / ".slimline", {})
    yield SimpleNamespace(
        request=Request(workers=2), directory=tmp_path, cache=Cache(tmp_path / ".slimline" / "cache"), clock=Clock(100), journal=journal, progress=Silent(), workers=None
    )  # fmt: skip
    journal.close()


def with_workers(job: Any, act: Callable[[int, Number], Answer | None], **how: Any) -> Scripted:
    workers = Scripted(job.cache, act, **how)
    job.workers = Shared(job)
    job.workers._workers, job.workers._started = workers, True
    return workers


def good(worker: int, task: Number) -> Answer:
    return Answer(worker, {})


def events(job: Any) -> list[dict[str, Any]]:
    return list(job.journal.events("worker"))


TASKS = [Number(name) for name in "abcde"]


def test_each_task_is_done_once_and_none_that_is_in_the_cache(job: Any) -> None:
    workers = with_workers(job, good)
    job.cache.put("c", {}, 1)
    share(job, TASKS, "counting", 0, 1)
    assert sorted(name for _, name in workers.log) == ["a", "b", "d", "e"] and {w for w, _ in workers.log} == {1, 2}
    assert job.cache.names() == set("abcde") and not events(job)
    (event,) = job.journal.events("shared")
    assert (event["tasks"], event["made"]) == (4, 4)


def test_a_single_task_and_a_job_without_workers_stay_here(job: Any) -> None:
    share(job, TASKS, "counting", 0, 1)
    workers = with_workers(job, good)
    share(job, TASKS[:1], "counting", 0, 1)
    assert not workers.log and not job.cache.names()


def test_a_task_whose_worker_died_is_done_by_another_and_then_by_this_process(job: Any) -> None:
    workers = with_workers(job, lambda worker, task: Answer(worker, died="signal 9") if task.name == "b" else good(worker, task), alive=(1, 2, 3))
    share(job, TASKS, "counting", 0, 1)
    assert job.cache.names() == set("acde") and len(workers.alive) == 1
    assert [e["again"] for e in events(job)] == ["it is done again by another", "it is done by this process"]
    assert {e["task"] for e in events(job)} == {"number b"}


def test_when_all_died_the_job_goes_on_alone(job: Any) -> None:
    workers = with_workers(job, lambda worker, task: Answer(worker, died="signal 9"))
    share(job, TASKS, "counting", 0, 1)
    assert not job.cache.names() and not workers.alive and len(events(job)) == 2
    share(job, TASKS, "counting", 0, 1)  # nobody is left to ask


def test_one_that_died_while_it_had_nothing_to_do_is_missed_by_nobody(job: Any) -> None:
    workers = with_workers(job, good, alive=(1, 2, 3))
    job.workers._opened = {1, 2, 3}
    workers.gone = 3
    share(job, TASKS[:2], "counting", 0, 1)
    assert job.cache.names() == {"a", "b"} and workers.alive == (1, 2)
    assert [(e["worker"], e["task"], e["again"]) for e in events(job)] == [(3, "waiting", "")]


def test_a_task_that_fails_is_left_to_this_process_and_its_worker_goes_on(job: Any) -> None:
    workers = with_workers(job, lambda worker, task: Answer(worker, error="ValueError: no") if task.name == "b" else good(worker, task))
    share(job, TASKS, "counting", 0, 1)
    assert job.cache.names() == set("acde") and workers.alive == (1, 2)
    assert [(e["error"], e["again"]) for e in events(job)] == [("ValueError: no", "it is done by this process")]


def test_workers_that_cannot_open_the_task_are_sent_away(job: Any) -> None:
    workers = with_workers(job, good, opening="ModelError: another one")
    share(job, TASKS, "counting", 0, 1)
    assert not workers.alive and not workers.log and len(events(job)) == 2


def test_nobody_is_waited_for_when_the_time_is_up(job: Any) -> None:
    workers = with_workers(job, lambda worker, task: None if task.name == "b" else good(worker, task))
    job.clock = Clock(1)
    share(job, TASKS, "counting", 0, 1)
    assert len(workers.alive) == 1 and job.cache.names() == set("acde")


def test_from_another_machine_entries_come_as_bytes(job: Any, tmp_path: Path) -> None:
    there = Cache(tmp_path / "there")

    def act(worker: int, task: Number) -> Answer:
        there.put(task.name, {}, task.name)
        return Answer(worker, {task.name: there.exported(task.name)})

    workers = with_workers(job, act, apart=True)
    share(job, TASKS, "counting", 0, 1)
    assert {name: job.cache.get(name)[1] for name in job.cache.names()} == {n: n for n in "abcde"}
    job.workers.stop()
    assert not workers.alive


def test_a_worker_opens_the_task_and_refuses_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    request = Request(reference=Reference(model="task.py", folder=tmp_path), out=tmp_path / "out")
    serve = Serve(request, Fingerprint(architecture="another", weights="", data=""), None, tmp_path)
    with pytest.raises(ModelError, match="others than where the command runs"):
        serve(Question(None, 0.0, 1))
    assert not (tmp_path / "out").exists()
    serve(Question(None, 0.0, 1, last=True))
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and p.name.startswith("slimline-worker")] == []


def test_without_workers_nothing_is_started(job: Any) -> None:
    for workers in (0, 1):
        job.request = Request(workers=workers, reference=Reference(model="task.py", folder=Path()))
        with at_work(job):
            assert job.workers is None
