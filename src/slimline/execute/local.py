"""Independent work on this machine: in this process, or in several."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from slimline.errors import WorkerDied

T = TypeVar("T")
R = TypeVar("R")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Local:
    """Runs work in ``workers`` processes of one thread each; with one worker, in this process.

    The processes are spawned, so work and items must be picklable: functions of a module, not lambdas; and a script that
    starts them needs ``if __name__ == "__main__"``. Threads are one per process, because
    OpenMP threads that spin on shared cores make each other several times slower.

    Example:
        >>> Local().map(len, ["a", "bc"])
        [1, 2]
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"{self.workers} workers; at least 1")

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``work`` of each item, in the order of the items. The first exception ends all.

        Raises:
            WorkerDied: a process ended without a result.
            Exception: whatever ``work`` raised, with the worker's traceback as a note.
        """
        listed = list(items)
        if self.workers == 1 or len(listed) < 2:
            return [work(item) for item in listed]
        return _Pool(work, listed, min(self.workers, len(listed))).run()


class _Pool:
    """Each worker holds one item at a time, so that it is known which one a dead worker had."""

    def __init__(self, work: Callable[[Any], Any], items: list[Any], workers: int) -> None:
        self.items = [pickle.dumps((work, item)) for item in items]  # here, so that what cannot be pickled says so at once
        self.shown = [_short(item) for item in items]
        self.count = workers
        self.processes: dict[Connection, BaseProcess] = {}
        self.holds: dict[Connection, int] = {}
        self.results: dict[int, Any] = {}

    def run(self) -> list[Any]:
        try:
            for _ in range(self.count):
                self._start()
            waiting = iter(range(len(self.items)))
            for connection in self.processes:
                self._hand(connection, next(waiting))
            while self.holds:
                for ready in wait(list(self.holds)):
                    assert isinstance(ready, Connection)
                    self._receive(ready)
                    place = next(waiting, None)
                    if place is not None:
                        self._hand(ready, place)
            return [self.results[i] for i in range(len(self.items))]
        finally:
            for connection, process in self.processes.items():
                connection.close()
                process.terminate()
                process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        self.processes[here] = process

    def _hand(self, connection: Connection, place: int) -> None:
        self.holds[connection] = place
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: its end is met at the next wait
            connection.send_bytes(self.items[place])

    def _receive(self, connection: Connection) -> None:
        place = self.holds.pop(connection)
        try:
            done, value, trace = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            process = self.processes[connection]
            process.join()
            raise WorkerDied(
                f"The process that worked on item {place} ({self.shown[place]}) ended with status {process.exitcode} and without a result.",
                hint="Status -9 means that it was killed, mostly for want of memory: use fewer workers.",
            ) from None
        if not done:
            value.add_note(f"In the worker, at item {place} ({self.shown[place]}):\n{trace}")
            raise value
        self.results[place] = value


def _serve(connection: Connection) -> None:
    """A worker: answers ``(work, item)`` with ``(True, result, "")`` or ``(False, exception, traceback)`` until its pipe closes."""
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before unpickling imports torch
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            message = connection.recv_bytes()
            try:
                work, item = pickle.loads(message)
                answer = pickle.dumps((True, work(item), ""))
            except Exception as error:  # noqa: BLE001 - it is raised again where the work was asked for
                answer = _failure(error)
            connection.send_bytes(answer)


def _failure(error: Exception) -> bytes:
    """The exception as it is, or its text where it cannot be pickled and read back."""
    trace = "".join(traceback.format_exception(error))
    try:
        whole = pickle.dumps((False, error, trace))
        pickle.loads(whole)
    except Exception:  # noqa: BLE001 - reading it back runs the exception's own code
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return whole


def _short(item: object) -> str:
    text = repr(item)
    return text if len(text) <= 80 else text[:77] + "..."
