"""Interrupts that are not lost.

Python drops what is raised in a finaliser or in a callback of a weak reference, and a signal's handler runs wherever its thread is: tracing a model makes thousands of both.
A lost Ctrl-C would leave a run going on as if nothing had been asked.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and a polite kill raise ``KeyboardInterrupt``; what became of it is for ``check`` and ``settled``. In another thread than the main one nothing changes; what was ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _asked.set()
        raise KeyboardInterrupt

    _asked.clear()
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def check() -> None:
    """Between two steps of the work.

    Raises:
        KeyboardInterrupt: one was lost.
    """
    if _asked.is_set():
        _asked.clear()
        raise KeyboardInterrupt


def settled() -> None:
    """An interrupt was caught: the work that follows is what it asks for."""
    _asked.clear()
