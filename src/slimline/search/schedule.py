"""What the time budget buys: counts, fixed at the start and then followed, so that the clock never decides what is chosen."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from slimline.core.result import Schedule

SENSITIVITY, CANDIDATES, RECOVERY = 0.15, 0.18, 0.65  # shares of the time left after the start; the rest measures, certifies and reports
DOWNSTREAM = 0.6  # of a forward pass, that measuring an option computes: what lies downstream of it
TIMING = 0.08  # of timing layers at the beginning and the result beside the references at the end
UNTRAINED = 0.4  # share of the candidates where there is nothing to train on
LEAST_RECOVERY = 0.2  # share of the time left, whatever a slow probe says that the rest will take
EPOCHS = 60  # of the training data: more recovery has not paid
LEAST_SAMPLES, MOST_SAMPLES = 32, 512
FEWEST_SAMPLES = 16  # where even the fewest options would take too long on 32
FINISHING = 0.2  # share of the time that finishing and certifying the finalists may take, by what candidates take
LEAST_CANDIDATES, MOST_CANDIDATES = 4, 24
CHEAPER = 0.6  # of what was probed: candidates that take more than that make no room, so that noise decides nothing
STEP = 4  # of candidates: what a disturbed probe may not change
BATCH, SMALL_BATCH, SMALL = 128, 64, 4_000  # samples of a training step: of much data, and of less than the third
LEAST_BATCH, ENOUGH_STEPS = 16, 100  # below so many steps in all, fewer samples a step
ENDING = 0.12  # share of the time that references and the timing beside them may take, when it is known what the rest took
CLEARLY = 1.25  # times the planned steps, below which they stay: noise adds none
FEWEST_STEPS = 30  # below which nothing is trained: candidates need the time more
STEP_PASSES = 4  # of one sample, that a step takes for each of its own: the teacher's forward pass, and the student's forward and backward


@dataclass(frozen=True)
class Probe:
    """Throughput, measured at the start. Seconds: of one forward sample, one training step, one lowering with its measurement."""

    forward: float
    step: float
    candidate: float


def make_schedule(seconds: float, left: float, probe: Probe, *, options: int, samples: int, train: int, batch: int, least: int = LEAST_SAMPLES) -> Schedule:
    """``left``: seconds not yet spent. ``options``: how many will be measured. ``samples``: how many there are to measure them on, of which ``least`` are used at least.
    ``train``: training samples, 0 for none. Coarse on purpose: small noise in the probe changes nothing. More time buys no less, but where it is
    just enough for training, which candidates make room for.

    Example:
        >>> make_schedule(600, 570, Probe(1e-4, 0.15, 4.0), options=200, samples=5000, train=45000, batch=128).finalists
        3
    """
    affordable = SENSITIVITY * left / max(options * DOWNSTREAM * probe.forward, 1e-9)
    loss_samples = min(2 ** int(math.log2(max(min(affordable, MOST_SAMPLES), least))), samples)
    candidates = int(min(max((CANDIDATES if train else UNTRAINED) * left / max(probe.candidate, 1e-9), LEAST_CANDIDATES), MOST_CANDIDATES)) // STEP * STEP
    finished = int(FINISHING * left / max(2 * probe.candidate, 1e-9))  # each is lowered, and run again in a process of its own
    finalists = 3 if left > 60 and finished >= 2 else 1
    others = (SENSITIVITY + TIMING) * left + (candidates + 2 * (finalists + 1)) * probe.candidate  # the safest is finished too
    steps = min(RECOVERY * left, max(left - others, LEAST_RECOVERY * left)) / max(probe.step, 1e-9)
    steps = min(steps, EPOCHS * max(train, batch) / batch) if train else 0
    if train and steps < FEWEST_STEPS:
        return make_schedule(seconds, left, probe, options=options, samples=samples, train=0, batch=batch, least=least)
    return Schedule(seconds=seconds, samples_loss=loss_samples, candidates=candidates, recovery_steps=coarse(steps), finalists=finalists)


def more_candidates(planned: int, candidate: float, taken: Sequence[float], spare: float = 0.0) -> int:
    """Candidates that fit beside the ``planned`` ones, of ``candidate`` seconds each, where they took as long as ``taken`` says. ``spare``: seconds that
    nothing else will use.

    Example:
        >>> more_candidates(4, 160.0, [75.0, 62.0, 52.0, 60.0]), more_candidates(4, 70.0, [75.0, 62.0, 52.0, 60.0])
        (4, 0)
        >>> more_candidates(4, 70.0, [75.0, 62.0, 52.0, 60.0], spare=300.0)
        4
    """
    usual = statistics.median(taken) if taken else math.inf
    fitting = int(max(spare, planned * candidate - sum(taken) if usual <= CHEAPER * candidate else 0.0) / max(usual, 1e-9))
    return max(0, min(fitting, MOST_CANDIDATES - planned)) // STEP * STEP


def longer_recovery(planned: int, left: float, step: float, *, candidate: float, finalists: int, seconds: float, most: float) -> int:
    """Training steps, where ``left`` seconds are not spent when training begins: more than ``planned`` where clearly more fit, at most ``most``.

    ``step`` and ``candidate``: seconds that they take; each of ``finalists`` and the safest are made twice, and the result is held against references.

    Example:
        >>> longer_recovery(3000, 1470, 0.3, candidate=6.0, finalists=3, seconds=1800, most=1e9)
        4000
        >>> longer_recovery(1500, 400, 0.17, candidate=6.0, finalists=3, seconds=600, most=1e9)
        1500
    """
    fitting = min((left - 2 * (finalists + 1) * candidate - ENDING * seconds) / max(step, 1e-9), most)
    return coarse(fitting) if fitting > CLEARLY * planned else planned


def longer_tuning(planned: int, left: float, step: float, *, candidate: float, places: int) -> int:
    """Training steps of the next of ``places`` finalists, for which ``left`` seconds are there: more than ``planned`` where clearly more fit.

    ``step`` and ``candidate``: seconds that they take; each finalist is made twice.

    Example:
        >>> longer_tuning(900, 200, 0.05, candidate=6.0, places=2), longer_tuning(900, 100, 0.05, candidate=6.0, places=2)
        (1500, 900)
    """
    fitting = (left / places - 2 * candidate) / max(step, 1e-9)
    return coarse(fitting) if fitting > CLEARLY * planned else planned


def batch_size(train: int, forward: float, left: float) -> int:
    """Samples of a training step, where ``forward`` seconds are a forward pass of one of ``train`` samples and ``left`` are not yet spent.

    Of a slow model they are fewer: thirty steps of 128 samples teach less than a hundred of 32.

    Example:
        >>> batch_size(45_000, 1e-3, 570), batch_size(45_000, 0.02, 570)
        (128, 32)
    """
    batch = BATCH if train >= SMALL else SMALL_BATCH
    while batch > LEAST_BATCH and ENOUGH_STEPS * STEP_PASSES * forward * batch > RECOVERY * left:
        batch //= 2
    return batch


def coarse(count: float) -> int:
    """Rounded down to a few values per power of ten."""
    if count < 10:
        return 0
    power = 10 ** int(math.log10(count))
    return int(max(m for m in (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8) if m * power <= count) * power)


class Clock:
    """Seconds of work: those of earlier runs, and since ``started`` (``time.monotonic()``)."""

    def __init__(self, seconds: float, started: float | None = None, spent: float = 0.0) -> None:
        self.seconds = seconds
        self.started = time.monotonic() if started is None else started
        self.spent = spent

    @property
    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.started

    def back_to(self, elapsed: float) -> None:
        """Go on from ``elapsed``: what was spent since then does not count.

        Example:
            >>> clock = Clock(600.0, spent=90.0)
            >>> clock.back_to(60.0)
            >>> round(clock.elapsed)
            60
        """
        self.spent, self.started = elapsed, time.monotonic()

    @property
    def left(self) -> float:
        return self.seconds - self.elapsed

    def over(self, share: float = 1.0) -> bool:
        """Whether more than ``share`` of the budget is spent."""
        return self.elapsed > share * self.seconds
