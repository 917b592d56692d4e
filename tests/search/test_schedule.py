"""The schedule fits the time, and grows with it."""

from __future__ import annotations

import itertools

import pytest

from slimline.search.schedule import Probe, make_schedule

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
    assert schedule.recovery_steps * probe.step <= 600 * 0.5


def test_small_noise_of_the_probe_changes_nothing() -> None:
    exact = make_schedule(120, 100, Probe(1e-5, 0.004, 1.7), options=60, samples=512, train=900, batch=64)
    noisy = make_schedule(120, 99, Probe(1.2e-5, 0.0046, 1.9), options=60, samples=512, train=900, batch=64)
    assert exact == noisy


def test_without_training_data_nothing_is_trained() -> None:
    assert make_schedule(600, 600, PROBES[0], options=10, samples=100, train=0, batch=64).recovery_steps == 0
