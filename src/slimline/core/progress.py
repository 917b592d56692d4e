"""What a running job tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Best:
    """The best candidate so far: a short description, and its main figures against the baseline's.

    ``download``: the bytes are of the archive, not of the file. ``latency_ms``: ``None`` where it was not measured yet. ``points``: the metric lies in [0, 1], so that the drop
    can be told in points. ``estimated``: the latency is a device's, from its table.
    """

    label: str
    size_bytes: int
    size_ratio: float
    latency_ms: float | None
    latency_ratio: float
    drop: float | None
    points: bool = True
    estimated: bool = False
    download: bool = False


class Progress(Protocol):
    """Implemented by ``report.terminal`` and by ``Silent``; all calls are cheap."""

    def found(self, lines: tuple[str, ...]) -> None:
        """What was found and what will be done, within seconds of the start."""
        ...

    def stage(self, name: str, fraction: float, seconds_left: float) -> None:
        """``fraction`` in [0, 1] of the whole job's schedule; ``seconds_left`` by the schedule."""
        ...

    def best(self, best: Best) -> None: ...
    def note(self, text: str) -> None:
        """A line worth keeping on the screen: a warning, a refusal, a failed trial."""
        ...


class Silent:
    """Shows nothing."""

    def found(self, lines: tuple[str, ...]) -> None: ...
    def stage(self, name: str, fraction: float, seconds_left: float) -> None: ...
    def best(self, best: Best) -> None: ...
    def note(self, text: str) -> None: ...
