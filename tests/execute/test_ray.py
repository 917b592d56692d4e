from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="slimline[ray] is not installed")

from slimline.core.workers import Answer  # noqa: E402
from slimline.errors import UsageError  # noqa: E402
from slimline.execute.ray import Ray  # noqa: E402


def serve(question: Any) -> Any:
    import os

    if question == "die":
        os._exit(7)
    if question == "raise":
        raise ValueError("no such thing")
    return os.getpid(), question


@pytest.fixture(scope="module")
def workers() -> Iterator[Ray]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # this file is no module of the workers'
    found = Ray("local", 2, serve)
    yield found
    for worker in found.alive:
        found.dismiss(worker)


def answers(workers: Ray, count: int) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    limit = time.monotonic() + 120
    while len(found) < count and time.monotonic() < limit:
        found |= {a.worker: a for a in workers.wait(1.0)}
    return found


def test_actors_answer_tell_what_was_raised_and_die_alone(workers: Ray) -> None:
    workers.ask(1, "one")
    workers.ask(2, "raise")
    found = answers(workers, 2)
    assert found[1].value[1] == "one" and found[2].error == "ValueError: no such thing" and workers.alive == (1, 2)
    workers.ask(1, "die")
    workers.ask(2, "two")
    found = answers(workers, 2)
    assert found[1].died and found[2].value[1] == "two" and workers.alive == (2,)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError, match=f"--ray {address}: Connection refused.*ray start --head"):
        Ray(address, 0, serve)
    assert time.monotonic() - start < 10
