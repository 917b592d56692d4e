"""Pages of freed tensors stay with the process while a job runs: glibc otherwise gives every block above 32 MB back, and the next one's pages are zeroed anew."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of glibc's mallopt
NEVER = -1
MUCH = 0.25  # of the machine's memory
BLOCK, BLOCKS = 2**25, 65_536  # glibc's own: the largest threshold that it comes to, and the most blocks of their own


class _Now:
    """``kept``: whether ``keep_heap`` is in force."""

    kept = False


def keep_heap() -> bool:
    """Large blocks come from the heap, which never shrinks; whether the C library has such settings (glibc).

    A forward pass of EfficientNet-Lite0 over 64 images took 3.5 s of the processor without, 2.2 of them in the kernel, and 1.3 s
    with (``benchmarks/heap.py``). The price is holes between small objects that are a bit too small for the next block: of blocks of 48 MB, one at a time, the heap
    came to hold seven.
    """
    _Now.kept = _set((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER))
    return _Now.kept


def usual_heap() -> None:
    """As a process has it that has worked for a while without such settings; nothing where they are not in force."""
    if _Now.kept:
        _Now.kept = False
        _set((MMAP_MAX, BLOCKS), (MMAP_THRESHOLD, BLOCK), (TRIM_THRESHOLD, 2 * BLOCK))


def give_back() -> None:
    """Between two stages of a job: pages of holes go back to the system, where the process holds more than ``MUCH`` of the machine's memory; where ``keep_heap`` is not in force, nothing."""
    if _Now.kept and _held() > MUCH * os.sysconf("SC_PHYS_PAGES"):
        ctypes.CDLL(None).malloc_trim(0)


def _held() -> int:
    """Pages of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """``keep_heap`` until the end of the block, where what is free goes back to the system.

    Example:
        >>> with kept_heap():
        ...     pass
    """
    kept = keep_heap()
    try:
        yield
    finally:
        usual_heap()
        if kept:
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def as_deployed() -> Iterator[None]:
    """Around what is timed in this process and allocates at every call: whoever deploys it has the usual heap."""
    kept = _Now.kept
    usual_heap()
    try:
        yield
    finally:
        if kept:
            keep_heap()


def _set(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(tuple(mallopt(which, value) for which, value in settings))
