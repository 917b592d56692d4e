"""Latencies of several artefacts that can be compared, on a machine that others use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from slimline.core.trial import Latency

QUARTILE = 0.25
ROUNDS, SLOW = 20, 0.1  # rounds at least; of a call that takes so many seconds a quarter of them, for what disturbs it is short beside it
LEAST = 2  # of such calls, where less time is asked for than one of them takes: the 60 beginnings of a large model, to know its layers


def interleaved(calls: Sequence[Callable[[], object]], *, seconds: float, threads: int, batch: int) -> tuple[Latency, ...]:
    """Each call's latency over ``seconds`` apiece: in turn, in bursts of about 5 ms, after a warm-up.

    The first one's median is that of its calls. The others' are the first's times the median, over the rounds, of what their burst took against its: what slows
    a shared machine lasts longer than a round and cancels out. A burst is stood for by its first quartile, which few
    interruptions reach (``tests/targets/test_timing.py`` simulates such a machine).
    """
    pace, slow = [], False
    for call in calls:  # warm-up, and how many calls make a burst
        count, start = 0, time.perf_counter()
        while (count < 5 and time.perf_counter() - start < SLOW) or time.perf_counter() - start < 0.03:
            call()
            count += 1
        pace.append(max(1, int(0.005 * count / (time.perf_counter() - start))))
        slow |= time.perf_counter() - start > SLOW * count
    taken: list[list[float]] = [[] for _ in calls]
    bursts: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds * len(calls)
    least = ROUNDS if not slow else ROUNDS // 4 if seconds >= SLOW else LEAST
    while time.perf_counter() < end or len(taken[0]) < least:
        for call, burst, times, typical in zip(calls, pace, taken, bursts, strict=True):
            if not slow:
                call()  # the caches are the other model's: not counted
            for _ in range(burst):
                start = time.perf_counter()
                call()
                times.append((time.perf_counter() - start) * 1e3)
            typical.append(float(np.quantile(times[-burst:], QUARTILE)))
    first = float(np.median(taken[0]))
    medians = [first * float(np.median(np.divide(typical, bursts[0]))) for typical in bursts]
    return tuple(
        Latency(median=median, p95=float(np.percentile(times, 95)), runs=len(times), threads=threads, batch=batch)
        for median, times in zip(medians, taken, strict=True)
    )
