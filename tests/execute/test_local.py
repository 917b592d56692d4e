from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slimline.core.workers import Answer
from slimline.execute.local import Local


def serve(question: Any) -> Any:
    if question == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if question == "raise":
        raise ValueError("no such thing")
    if question == "wait":
        time.sleep(60)
    print(f"asked {question}")
    return os.getpid(), question


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Local]:
    found = Local(2, serve, tmp_path, 4)
    yield found
    for worker in found.alive:
        found.dismiss(worker)


def answers(workers: Local, count: int) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    limit = time.monotonic() + 60
    while len(found) < count and time.monotonic() < limit:
        found |= {a.worker: a for a in workers.wait(1.0)}
    return found


def test_each_answers_from_a_process_of_its_own_and_prints_into_its_log(workers: Local, tmp_path: Path) -> None:
    for worker in workers.alive:
        workers.ask(worker, worker * 10)
    found = answers(workers, 2)
    assert {w: a.value[1] for w, a in found.items()} == {1: 10, 2: 20}
    assert len({os.getpid(), *(a.value[0] for a in found.values())}) == 3
    assert workers.threads(2) == 2 and workers.threads(1) == 4 and workers.threads(9) == 2
    for worker in workers.alive:
        workers.dismiss(worker)
    assert [(tmp_path / f"{n}.log").read_text() for n in (1, 2)] == ["asked 10\n", "asked 20\n"]


def test_one_that_dies_takes_nothing_from_the_other(workers: Local) -> None:
    workers.ask(1, "die")
    workers.ask(2, "live")
    found = answers(workers, 2)
    assert found[1].died == "signal 9 (Killed)" and found[2].value[1] == "live" and workers.alive == (2,)
    workers.ask(2, "again")
    assert answers(workers, 1)[2].value[1] == "again"


def test_what_is_raised_is_told_and_the_worker_lives(workers: Local) -> None:
    workers.ask(1, "raise")
    assert answers(workers, 1)[1].error == "ValueError: no such thing"
    workers.ask(1, "again")
    assert answers(workers, 1)[1].value[1] == "again"


def test_one_is_dismissed_in_the_middle_of_its_work(workers: Local) -> None:
    workers.ask(1, "wait")
    time.sleep(0.5)
    start = time.monotonic()
    workers.dismiss(1)
    assert time.monotonic() - start < 10 and workers.alive == (2,)


def test_workers_end_when_the_one_who_asks_is_killed(tmp_path: Path) -> None:
    """A long way into a question, too; nobody is left to dismiss them."""
    script = tmp_path / "asking.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "from slimline.execute.local import Local\n"
        "def serve(question):\n"
        "    import os\n"
        "    pathlib.Path(question).write_text(str(os.getpid()))\n"
        "    time.sleep(120)\n"
        "if __name__ == '__main__':\n"
        "    workers = Local(1, serve, pathlib.Path(sys.argv[1]), 1)\n"
        "    workers.ask(1, sys.argv[1] + '/asked')\n"
        "    time.sleep(120)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not ((tmp_path / "asked").exists() and (tmp_path / "asked").read_text()):
        time.sleep(0.1)
    worker = int((tmp_path / "asked").read_text())
    process.kill()
    process.wait()
    while time.monotonic() < limit + 30:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended, and not yet collected by whoever inherited it
        time.sleep(0.2)
    raise AssertionError(f"process {worker} goes on")
