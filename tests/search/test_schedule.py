"""The schedule fits the time, and grows with it."""

from __future__ import annotations

import itertools
import time

import pytest

from slimline.search.schedule import (
    CANDIDATES,
    DOWNSTREAM,
    FEWEST_STEPS,
    LEAST_CANDIDATES,
    LEAST_SAMPLES,
    MOST_CANDIDATES,
    RECOVERY,
    SENSITIVITY,
    UNTRAINED,
    Clock,
    Probe,
    batch_size,
    make_schedule,
    more_candidates,
)

PROBES = [Probe(1e-5, 0.002, 1.0), Probe(1e-4, 0.15, 4.0), Probe(1e-2, 3.0, 20.0)]


@pytest.mark.parametrize("probe", PROBES)
def test_more_time_never_buys_less(probe: Probe) -> None:
    schedules = [make_schedule(t, t, probe, options=150, samples=5000, train=45_000, batch=128) for t in (30, 60, 120, 600, 1800, 7200)]
    for less, more in itertools.pairwise(schedules):
        assert less.recovery_steps <= more.recovery_steps
        assert less.candidates <= more.candidates
        assert less.samples_loss <= more.samples_loss


@pytest.mark.parametrize("probe", PROBES)
def test_recovery_fits_its_share_of_the_time(probe: Probe) -> None:
    schedule = make_schedule(600, 600, probe, options=150, samples=5000, train=45_000, batch=128)
    assert schedule.recovery_steps * probe.step <= 600 * RECOVERY


def test_small_noise_of_the_probe_changes_nothing() -> None:
    exact = make_schedule(120, 100, Probe(1e-5, 0.004, 1.35), options=60, samples=512, train=900, batch=64)
    noisy = make_schedule(120, 99, Probe(1.2e-5, 0.0046, 1.45), options=60, samples=512, train=900, batch=64)
    assert exact == noisy


def test_without_training_data_nothing_is_trained() -> None:
    assert make_schedule(600, 600, PROBES[0], options=10, samples=100, train=0, batch=64).recovery_steps == 0


def test_steps_of_a_slow_model_take_fewer_samples_and_there_are_more_of_them() -> None:
    forward = 0.02  # a MiniLM on two cores
    small, large = batch_size(60_000, forward, 570), 128
    steps = [
        make_schedule(600, 570, Probe(forward, 4 * forward * b, 20.0), options=150, samples=512, train=60_000, batch=b).recovery_steps for b in (small, large)
    ]
    assert small < large and steps[0] > 3 * steps[1]
    assert batch_size(60_000, forward / 100, 570) == large and batch_size(900, forward / 100, 570) == 64


@pytest.mark.parametrize("seconds", [1, 20, 45, 90, 600, 3600])
@pytest.mark.parametrize("probe", PROBES)
def test_what_is_planned_fits_or_is_the_least_that_makes_sense(seconds: float, probe: Probe) -> None:
    schedule = make_schedule(seconds, seconds, probe, options=150, samples=5000, train=45_000, batch=128)
    assert 1 <= schedule.finalists <= 3
    assert schedule.samples_loss == LEAST_SAMPLES or schedule.samples_loss * 150 * DOWNSTREAM * probe.forward <= SENSITIVITY * seconds
    assert schedule.candidates == LEAST_CANDIDATES or schedule.candidates * probe.candidate <= (CANDIDATES if schedule.recovery_steps else UNTRAINED) * seconds
    assert schedule.recovery_steps * probe.step <= RECOVERY * seconds
    assert SENSITIVITY + CANDIDATES + RECOVERY < 1, "something is left for measuring and the certificate"


def test_never_more_samples_than_there_are() -> None:
    assert make_schedule(600, 600, PROBES[0], options=10, samples=20, train=0, batch=64).samples_loss == 20


def test_the_clock_counts_what_earlier_runs_spent() -> None:
    clock = Clock(100.0, started=time.monotonic() - 30, spent=75.0)
    assert 105 <= clock.elapsed < 106 and -6 < clock.left <= -5
    assert clock.over() and clock.over(1.05) and not clock.over(1.10)
    assert not Clock(100.0).over(0.5)


def test_time_that_is_not_trained_in_buys_candidates() -> None:
    trained, untrained = (make_schedule(600, 600, PROBES[2], options=150, samples=250, train=n, batch=64) for n in (45_000, 0))
    assert untrained.candidates > trained.candidates


def test_a_handful_of_steps_is_left_to_the_candidates() -> None:
    schedules = [make_schedule(600, 600, Probe(1e-3, step, 10.0), options=50, samples=512, train=45_000, batch=16) for step in (1.0, 30.0)]
    assert schedules[0].recovery_steps >= FEWEST_STEPS and schedules[1].recovery_steps == 0
    assert schedules[1].candidates > schedules[0].candidates


def test_candidates_that_were_cheaper_than_probed_make_room_for_more() -> None:
    assert more_candidates(4, 100.0, []) == 0
    assert more_candidates(4, 100.0, [10.0] * 4) == MOST_CANDIDATES - 4
    assert more_candidates(8, 100.0, [120.0] * 8) == 0
    assert more_candidates(8, 100.0, [45.0] * 8) == 8 and more_candidates(8, 100.0, [65.0] * 8) == 0
