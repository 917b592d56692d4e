"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

from slimline.core.workers import Answer, Serve

LAST_SECONDS = 5.0  # that a worker has to end politely


class Local:
    """``count`` new processes that answer with ``serve``, which is sent to them.

    ``logs``: a folder where each writes to ``NUMBER.log`` what user code prints there. ``cores``: threads that there are for all of them.
    """

    apart = False

    def __init__(self, count: int, serve: Serve, logs: Path, cores: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._cores = cores
        self._processes: dict[int, tuple[SpawnProcess, Connection[Any, Any]]] = {}
        for number in range(1, count + 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(serve, theirs, logs / f"{number}.log", os.getpid()), name=f"slimline worker {number}")
            process.start()
            theirs.close()
            self._processes[number] = process, ours

    @property
    def alive(self) -> tuple[int, ...]:
        return tuple(self._processes)

    def threads(self, busy: int) -> int:
        """This process's own, shared out among those that are busy at once."""
        return max(1, self._cores // max(1, min(busy, len(self._processes))))

    def ask(self, worker: int, question: Any) -> None:
        try:
            self._processes[worker][1].send(question)
        except OSError:  # it has died since: ``wait`` will say so
            return

    def wait(self, seconds: float) -> list[Answer]:
        by_connection = {connection: number for number, (_, connection) in self._processes.items()}
        answers = []
        for ready in wait(list(by_connection), seconds):
            connection = cast("Connection[Any, Any]", ready)  # only connections were handed in
            number = by_connection[connection]
            try:
                error, value = connection.recv()
                answers.append(Answer(number, value, error))
            except (EOFError, OSError):
                process, _ = self._processes[number]
                process.join(LAST_SECONDS)
                self.dismiss(number)
                answers.append(Answer(number, died=_end(process.exitcode)))
        return answers

    def dismiss(self, worker: int) -> None:
        process, connection = self._processes.pop(worker)
        connection.close()
        if process.is_alive():
            process.terminate()
            process.join(LAST_SECONDS)
        if process.is_alive():
            process.kill()
            process.join(LAST_SECONDS)


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code} ({signal.strsignal(-code) or 'unknown'})"
    return f"exit {code}"


def _answer(serve: Serve, connection: Connection[Any, Any], log: Path, parent: int) -> None:
    """A worker's life: until there is nobody left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks, who then ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("ab") as file:  # what user code prints is no result of the command's
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            answer = "", serve(question)
        except Exception as error:  # noqa: BLE001 - whatever user code raises here is told to the one who asked
            import traceback

            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}", None
        connection.send(answer)


def _watch(parent: int) -> None:
    """End when the one who asks was killed, in the middle of a question too."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
