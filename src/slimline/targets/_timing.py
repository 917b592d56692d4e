"""Latencies of several artefacts that can be compared, on a machine that others use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from slimline.core.trial import Latency


def interleaved(calls: Sequence[Callable[[], object]], *, seconds: float, threads: int, batch: int) -> tuple[Latency, ...]:
    """Each call's latency over ``seconds`` apiece: in turn, in bursts of about 5 ms, after a warm-up."""
    pace = []
    for call in calls:  # warm-up, and how many calls make a burst
        count, start = 0, time.perf_counter()
        while count < 5 or time.perf_counter() - start < 0.03:
            call()
            count += 1
        pace.append(max(1, int(0.005 * count / (time.perf_counter() - start))))
    taken: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(taken[0]) < 20:
        for call, burst, times in zip(calls, pace, taken, strict=True):
            call()  # the caches are the other model's: not counted
            for _ in range(burst):
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1e3)
    return tuple(Latency(median=float(np.median(t)), p95=float(np.percentile(t, 95)), runs=len(t), threads=threads, batch=batch) for t in taken)
