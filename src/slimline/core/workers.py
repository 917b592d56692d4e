"""What others than this process do for it: questions are asked of workers, which answer or die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Serve = Callable[[Any], Any]


@dataclass(frozen=True)
class Answer:
    """``error``: what the worker raised instead of giving ``value``. ``died``: how it ended instead of answering."""

    worker: int
    value: Any = None
    error: str = ""
    died: str = ""


class Workers(Protocol):
    """Started at once; each has one question at a time. Implemented by ``execute.local`` and ``execute.ray``."""

    apart: bool
    """Whether they may be on other machines, where this one's files are not."""

    @property
    def alive(self) -> tuple[int, ...]:
        """Their numbers."""
        ...

    def threads(self, busy: int) -> int:
        """How many each of ``busy`` workers computes with."""
        ...

    def ask(self, worker: int, question: Any) -> None: ...
    def wait(self, seconds: float) -> list[Answer]:
        """What came within ``seconds``; a worker that died is not alive afterwards."""
        ...

    def dismiss(self, worker: int) -> None:
        """End it, whatever it does."""
        ...
