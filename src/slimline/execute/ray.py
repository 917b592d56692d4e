"""Workers that are actors of a Ray cluster (https://docs.ray.io), on the user's own machines."""

from __future__ import annotations

import os
import socket
from typing import Any

from slimline.core.extras import require
from slimline.core.workers import Answer, Serve
from slimline.errors import UsageError

KNOCK_SECONDS = 5.0
START = "Start a cluster with `ray start --head` and give the address that it prints, or give `local` for one on this machine."


class Ray:
    """``count`` actors (0: one per machine of the cluster, with all its cores) that answer with ``serve``, which is sent to them.

    Raises:
        UsageError: ray is not installed, the cluster cannot be reached, or it has no core.
    """

    apart = True

    def __init__(self, address: str, count: int, serve: Serve) -> None:
        require("ray", "ray", "--ray")
        _knock(address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reports its use to its makers unless told not to
        import ray

        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False if address == "local" else None)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UsageError(f"--ray {address}: {str(error).strip().splitlines()[0]}", hint=START) from error
        try:
            cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
            cores = [c for c in cores if c]
            if not cores:
                raise UsageError(f"--ray {address}: no machine there has a core.", hint=START)
            count = min(count or len(cores), sum(cores))
            self._threads = max(1, min(cores) if count <= len(cores) else sum(cores) // count)
            actor = ray.remote(_Actor).options(num_cpus=self._threads, scheduling_strategy="SPREAD", max_restarts=0)
            self._actors = {number: actor.remote(serve) for number in range(1, count + 1)}
        except BaseException:
            ray.shutdown()
            raise
        self._asked: dict[Any, int] = {}

    @property
    def alive(self) -> tuple[int, ...]:
        return tuple(self._actors)

    def threads(self, busy: int) -> int:
        return self._threads

    def ask(self, worker: int, question: Any) -> None:
        self._asked[self._actors[worker].answer.remote(question)] = worker

    def wait(self, seconds: float) -> list[Answer]:
        if not self._asked:
            return []
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=seconds)
        answers = []
        for reference in ready:
            number = self._asked.pop(reference)
            try:
                error, value = self._ray.get(reference)
                answers.append(Answer(number, value, error))
            except self._ray.exceptions.RayError as error:
                self.dismiss(number)
                answers.append(Answer(number, died=str(error).strip().splitlines()[0]))
        return answers

    def dismiss(self, worker: int) -> None:
        self._ray.kill(self._actors.pop(worker))
        self._asked = {reference: number for reference, number in self._asked.items() if number != worker}
        if not self._actors:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Whether somebody listens at ``HOST:PORT`` or ``ray://HOST:PORT``: Ray itself tries for minutes.

    Raises:
        UsageError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except OSError as error:
        raise UsageError(f"--ray {address}: {error.strerror or error}.", hint=START) from error


class _Actor:
    def __init__(self, serve: Serve) -> None:
        self.serve = serve

    def answer(self, question: Any) -> tuple[str, Any]:
        try:
            return "", self.serve(question)
        except Exception as error:  # noqa: BLE001 - whatever user code raises here is told to the one who asked
            return f"{type(error).__name__}: {error}", None
