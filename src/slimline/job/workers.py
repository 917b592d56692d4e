"""Work that others do for a job: each task makes one entry of the cache, and the job then goes its usual way and finds it there.

So a worker can decide nothing, and whatever happens to it costs time alone: what it did not make is made where it is needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from slimline.core import workers
from slimline.core.heap import keep_heap
from slimline.core.plan import Fingerprint
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.site import Site
from slimline.errors import ModelError
from slimline.execute.local import Local
from slimline.execute.ray import Ray
from slimline.job.context import STATE, Job, Source, open_job
from slimline.job.found import look
from slimline.search.schedule import Clock
from slimline.search.workshop import Workshop
from slimline.store.cache import Cache
from slimline.store.private import private

FOLDER = "workers"  # in a run's state folder: what they print, and what they need while they run
PATIENCE = 1.0  # seconds between two looks at the clock


class Task(Protocol):
    """A frozen dataclass, since it is sent to another process. ``name``: of the cache entry that it makes. ``needs``: entries that it starts from."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    def work(self, bench: Bench) -> None:
        """Make the entry; without it if there is no time left."""
        ...


@dataclass
class Bench:
    """What a worker has at hand: the user's task, opened anew, and the original's workshop. ``kept``: what one task leaves for the next."""

    job: Job
    workshop: Workshop
    sites: Mapping[str, Site]
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """``task``: ``None`` to open the user's task. ``elapsed``: seconds of the job so far. ``entries``: those that the task needs, where the cache is elsewhere.

    ``last``: there is nothing more to do, and nothing may stay behind.
    """

    task: Task | None
    elapsed: float
    threads: int
    entries: Mapping[str, bytes] = field(default_factory=dict)
    last: bool = False


@dataclass
class Serve:
    """A worker's side of the work. ``cache``: the job's own; ``None`` where its files are not at hand. ``scratch``: for what else must lie somewhere."""

    request: Request
    fingerprint: Fingerprint
    cache: Path | None
    scratch: Path | None
    own: Path | None = None
    bench: Bench | None = None

    def __call__(self, question: Question) -> dict[str, bytes]:
        """Entries that the task made, where the cache is elsewhere."""
        if question.last:
            if self.own is not None:
                shutil.rmtree(self.own, ignore_errors=True)
            return {}
        keep_heap()
        torch.set_num_threads(question.threads)
        torch.manual_seed(self.request.seed)
        if self.bench is None:
            self.bench = self._open()
        job = self.bench.job
        job.clock = Clock(self.request.seconds, None, question.elapsed)
        if question.task is None:
            return {}
        for name, content in question.entries.items():
            if name not in job.cache:
                job.cache.imported(name, content)
        before = job.cache.names() if self.cache is None else set()
        question.task.work(self.bench)
        return {name: job.cache.exported(name) for name in job.cache.names() - before} if self.cache is None else {}

    def _open(self) -> Bench:
        """As the command did.

        Raises:
            SlimlineError: what the user gave is not here, or another model comes of it.
        """
        assert self.request.reference is not None
        os.chdir(self.request.reference.folder)
        own = self.own = Path(tempfile.mkdtemp(prefix="slimline-worker-", dir=self.scratch))
        alone = self.request.model_copy(update={"out": own / "run", "shared": None, "resume": False, "force": False})
        job = open_job(opened(self.request), alone, Silent())
        if job.fingerprint != self.fingerprint:
            raise ModelError(
                "Here the model or its data are others than where the command runs.",
                hint="model() and data() must give the same in every process and on every machine.",
            )
        job.request = self.request
        job.cache = Cache(self.cache, own=False) if self.cache is not None else Cache(own / "cache")
        sites, _, workshop = look(job)
        return Bench(job, workshop, {s.id: s for s in sites})


def opened(request: Request) -> Source:
    """The user's task, from the request's reference.

    Raises:
        SlimlineError: it cannot be opened.
    """
    from slimline.job.specialised import specialised
    from slimline.sources.dispatch import open_source
    from slimline.trust.loading import load_weights

    given = request.reference
    assert given is not None
    weights = None if given.weights is None else load_weights(given.weights)
    source = open_source(given.model, weights=weights, data=given.data, metric=given.metric, trusted=given.trusted)
    return specialised(source, request.classes)


class Shared:
    """A job's workers: started when there is something for them to do, and never busy while the job measures times."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = job.directory / STATE / FOLDER
        self._workers: workers.Workers | None = self._start() if job.request.ray else None  # a wrong address is told at once
        self._opened: set[int] = set()
        self._started = self._workers is not None

    def _start(self) -> workers.Workers:
        job, request = self._job, self._job.request
        if request.ray:
            return Ray(request.ray, request.workers, Serve(request, job.fingerprint, None, None))
        folder = private(self._folder.absolute())
        return Local(request.workers, Serve(request, job.fingerprint, job.cache.folder.absolute(), folder), folder, torch.get_num_threads())

    def make(self, tasks: Sequence[Task], stage: str, begin: float, end: float) -> None:
        """Have the workers make the tasks' entries; returns when all are made, or nobody is left to make them, or the time is up.

        A task whose worker died is given to another one once. ``begin`` and ``end``: the stage's place in the whole job, from 0 to 1.
        """
        if not self._started:
            self._workers, self._started = self._start(), True
        found = self._workers
        if found is None or not found.alive:
            return
        started = last = time.monotonic()
        waiting, again, made = deque(tasks), set[str](), 0
        busy: dict[int, Task | None] = {}
        threads = found.threads(len(tasks))
        try:
            while not self._job.clock.over():
                if waiting or any(busy.values()):
                    last = time.monotonic()
                elif not busy or time.monotonic() - last > last - started:
                    break  # those that still open the task, for later, were waited for as long again
                for worker in found.alive:
                    if worker in busy or not waiting:
                        continue
                    busy[worker] = waiting.popleft() if worker in self._opened else None
                    found.ask(worker, self._question(busy[worker], threads))
                if not busy:
                    break
                for answer in found.wait(PATIENCE):
                    task = busy.pop(answer.worker, None)
                    if answer.died or answer.error:
                        retry = bool(answer.died) and task is not None and task.name not in again
                        self._lost(found, answer, task, retry=retry)
                        if retry and task is not None:
                            again.add(task.name)
                            waiting.append(task)
                    elif task is None:
                        self._opened.add(answer.worker)
                    else:
                        for name, content in answer.value.items():
                            self._job.cache.imported(name, content)
                        made += task.name in self._job.cache
                self._job.progress.stage(stage, begin + (end - begin) * made / len(tasks), max(0.0, self._job.clock.left))
        except BaseException:
            self.stop()
            raise
        for worker in busy:  # whoever is still at it would be in the way
            found.dismiss(worker)
        about = {"stage": stage, "tasks": len(tasks), "made": made, "threads": threads, "seconds": round(time.monotonic() - started, 2)}
        self._job.journal.append("shared", about, self._job.clock.elapsed)

    def _question(self, task: Task | None, threads: int) -> Question:
        cache, elapsed = self._job.cache, self._job.clock.elapsed
        if task is None:  # with as many threads as here: a model that is trained when it is opened is the same model then
            return Question(None, elapsed, torch.get_num_threads())
        assert self._workers is not None
        return Question(task, elapsed, threads, {n: cache.exported(n) for n in task.needs if n in cache} if self._workers.apart else {})

    def _lost(self, found: workers.Workers, answer: workers.Answer, task: Task | None, *, retry: bool) -> None:
        """Say what happened; a worker that cannot open the user's task is of no use."""
        what = str(task) if task is not None else "waiting" if answer.worker in self._opened else "opening the task"
        went = f"died ({answer.died})" if answer.died else f"failed: {answer.error}"
        then = "it is done again by another" if retry and found.alive else "it is done by this process"
        event = {"worker": answer.worker, "task": what, "died": answer.died, "error": answer.error, "again": "" if task is None else then}
        self._job.journal.append("worker", event, self._job.clock.elapsed)
        self._job.progress.note(f"worker {answer.worker} {went[:200]} at {what}" + ("" if task is None else f"; {then}"))
        if task is None and not answer.died:
            found.dismiss(answer.worker)

    def stop(self) -> None:
        """End them all, and remove what they needed; what they printed stays."""
        found = self._workers
        if found is None:
            return
        if found.apart:
            for worker in found.alive:
                found.ask(worker, Question(None, 0.0, 1, last=True))
            limit = time.monotonic() + PATIENCE
            answered = set[int]()
            while answered < set(found.alive) and time.monotonic() < limit:
                answered |= {a.worker for a in found.wait(PATIENCE)}
        for worker in found.alive:
            found.dismiss(worker)
        for left in self._folder.glob("slimline-worker-*"):
            shutil.rmtree(left, ignore_errors=True)


def share(job: Job, tasks: Sequence[Task], stage: str, begin: float, end: float) -> None:
    """Have the job's workers make what is not in the cache yet. A single task is left to this process, which has all threads for it."""
    missing = [t for t in tasks if t.name not in job.cache]
    if job.workers is not None and len(missing) > 1:
        job.workers.make(missing, stage, begin, end)


@contextlib.contextmanager
def at_work(job: Job) -> Iterator[None]:
    """The job has the workers that its request asks for, until the end of the block.

    Raises:
        UsageError: the Ray cluster cannot be reached.
    """
    if job.request.reference is None or (job.request.workers < 2 and not job.request.ray):
        yield
        return
    job.workers = Shared(job)
    try:
        yield
    finally:
        job.workers.stop()
