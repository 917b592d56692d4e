from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from slimline.core.result import DropInterval
from slimline.errors import DataError
from slimline.measure.certify import (
    KNOWN,
    LOST,
    Usual,
    best_sequence,
    bootstrap_interval,
    chance,
    decide,
    drop_interval,
    expected_drop,
    expected_half_width,
    fixed_sequence,
    likely_half_width,
    shrunk,
    usual_drop,
)
from slimline.measure.quality import f1


def pair(lost: int, won: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """0/1 scores of two models that differ on ``lost + won`` of ``n`` samples."""
    a, b = torch.ones(n), torch.ones(n)
    b[:lost] = 0
    a[lost : lost + won] = 0
    return a, b


def interval(observed: float, lower: float, upper: float, allowed: float = 0.01) -> DropInterval:
    return DropInterval(observed=observed, lower_95=lower, upper_95=upper, allowed=allowed, samples=100)


def test_the_observed_drop_is_the_mean_difference_and_lies_within() -> None:
    found, test = drop_interval(*pair(30, 12, 2000), 0.02)
    assert found.observed == pytest.approx(0.009) and found.samples == 2000
    assert found.lower_95 < 0.009 < found.upper_95 < 0.02 and found.needed_samples is None
    assert test.startswith("exact")


def test_299_samples_without_a_difference_certify_one_percent_and_298_do_not() -> None:
    """0.99**299 < 5 % < 0.99**298; one more is paid for the unknown share of differing pairs."""
    assert decide(drop_interval(*pair(0, 0, 300), 0.01)[0], "user") == "pass"
    assert decide(drop_interval(*pair(0, 0, 298), 0.01)[0], "user") == "inconclusive"


@pytest.mark.parametrize(("n", "discordance"), [(100, 0.03), (100, 0.1), (1000, 0.03)])
def test_a_true_drop_at_the_allowance_passes_in_at_most_5_percent_of_holdouts(n: int, discordance: float) -> None:
    """Drawn from the model of the errors; ``tests/numerics`` adds up the exact chances for more of them."""
    allowed, runs = 0.02, 300
    draws = torch.multinomial(torch.tensor([(discordance + allowed) / 2, (discordance - allowed) / 2, 1 - discordance]), runs * n, replacement=True).reshape(
        runs, n
    )
    tables = torch.stack([(draws == 0).sum(1), (draws == 1).sum(1)], 1)
    kinds, counts = tables.unique(dim=0, return_counts=True)
    near = kinds[:, 0] - kinds[:, 1] < allowed * n - 1.2 * math.sqrt(discordance * n)  # no other can pass: a limit is farther than that
    passes = sum(
        int(c) for (a, b), c in zip(kinds[near].tolist(), counts[near].tolist(), strict=True) if drop_interval(*pair(a, b, n), allowed)[0].upper_95 <= allowed
    )
    assert passes / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_needed_samples_decide_at_the_same_drop_and_one_tenth_fewer_do_not() -> None:
    for lost, won, n, allowed in ((6, 2, 600, 0.01), (0, 0, 100, 0.01), (12, 2, 200, 0.04), (30, 2, 600, 0.04)):
        needed = drop_interval(*pair(lost, won, n), allowed)[0].needed_samples
        assert needed is not None and needed > n
        for count, decided in ((needed, True), (int(0.9 * needed), False)):
            again, _ = drop_interval(*pair(round(lost * count / n), round(won * count / n), count), allowed)
            assert (decide(again, "user") != "inconclusive") == decided, (lost, won, n, count)


def test_at_exactly_the_allowance_no_number_of_samples_is_named() -> None:
    found, _ = drop_interval(*pair(10, 0, 1000), 0.01)
    assert decide(found, "user") == "inconclusive" and found.needed_samples is None


def test_drops_far_beyond_the_allowance_fail_and_gains_pass() -> None:
    assert decide(drop_interval(*pair(60, 10, 1000), 0.01)[0], "user") == "fail"
    assert decide(drop_interval(*pair(10, 60, 1000), 0.0)[0], "user") == "pass"


def test_bounded_scores_pay_for_a_loss_that_was_not_seen() -> None:
    """Pixel accuracies that agree everywhere are no better evidence than equal answers are: 299 samples for one percent."""
    scores = torch.linspace(0.2, 0.9, 300)
    assert drop_interval(scores, scores, 0.01)[0].upper_95 == pytest.approx(0.00995, rel=0.01)
    short, test = drop_interval(scores[:250], scores[:250], 0.01)
    assert test == "Gaffke's limit of bounded paired scores"
    assert decide(short, "user") == "inconclusive" and short.needed_samples is not None and 296 <= short.needed_samples <= 320


def test_cosines_may_fall_by_two() -> None:
    scores = torch.linspace(-0.5, 1, 300)
    positive = (scores + 0.5) / 1.5
    assert drop_interval(scores, scores, 0.1)[0].upper_95 == pytest.approx(2 * drop_interval(positive, positive, 0.1)[0].upper_95, rel=0.01)


def test_unbounded_scores_take_the_worst_difference_seen_for_the_worst() -> None:
    errors = -5 * torch.rand(500)
    found, test = drop_interval(errors, errors - 0.1 * torch.rand(500), 0.06)
    assert "worst seen" in test
    assert decide(found, "user") == "pass" and 0.052 < found.upper_95 < 0.058
    assert drop_interval(errors, errors, 0.06)[0].upper_95 > 0, "equal scores are no proof either"


def test_needed_samples_of_other_scores_decide_when_the_sample_is_repeated() -> None:
    a = torch.rand(120)
    b = (a - 0.02 * torch.rand(120)).clamp(0)
    found, _ = drop_interval(a, b, 0.015)
    assert found.needed_samples is not None
    times = math.ceil(found.needed_samples / 120)
    assert decide(drop_interval(a.repeat(times), b.repeat(times), 0.015)[0], "user") == "pass"
    assert decide(drop_interval(a.repeat(times - 1), b.repeat(times - 1), 0.015)[0], "user") == "inconclusive"


def test_scores_that_do_not_pair_or_are_not_finite_are_named() -> None:
    with pytest.raises(DataError, match="3 scores of the original and 2"):
        drop_interval(torch.ones(3), torch.ones(2), 0.01)
    with pytest.raises(DataError, match="1 of 2 scores of the compressed model are not finite"):
        drop_interval(torch.ones(2), torch.tensor([1.0, math.nan]), 0.01)
    with pytest.raises(DataError, match=r"shape \(0,\)"):
        drop_interval(torch.ones(0), torch.ones(0), 0.01)


def logits(labels: torch.Tensor, wrong: int) -> torch.Tensor:
    out = torch.nn.functional.one_hot(labels, 3).float()
    out[:wrong] = out[:wrong].roll(1, 1)
    return out


def test_the_bootstrap_draws_the_same_samples_for_both_models() -> None:
    """Two models that are wrong on the same 40 of 400: only the 4 more that one gets wrong make a difference."""
    labels = torch.arange(400) % 3
    found, test = bootstrap_interval(f1, logits(labels, 40), logits(labels, 44), labels, 0.03, seed=0, resamples=200)
    assert found.observed == pytest.approx(0.01, abs=2e-3)
    assert 0 <= found.lower_95 < found.observed < found.upper_95 < 0.03, "an unpaired interval is four times as wide"
    assert test.startswith("paired bootstrap")
    assert bootstrap_interval(f1, logits(labels, 40), logits(labels, 44), labels, 0.03, seed=0, resamples=200)[0] == found


def test_the_bootstrap_agrees_with_the_exact_test_on_a_mean() -> None:
    a, b = pair(40, 25, 1500)
    exact, _ = drop_interval(a, b, 0.02)
    drawn, _ = bootstrap_interval(lambda outputs, _: float(outputs.mean()), a, b, None, 0.02, seed=0, resamples=1000)
    assert drawn.observed == pytest.approx(exact.observed, abs=1e-6)
    assert drawn.upper_95 - drawn.observed == pytest.approx(exact.upper_95 - exact.observed, rel=0.15)


def test_models_that_agree_on_few_samples_are_not_certified_by_the_bootstrap() -> None:
    labels = torch.arange(30) % 3
    found, _ = bootstrap_interval(f1, logits(labels, 3), logits(labels, 3), labels, 0.01, seed=0, resamples=50)
    assert decide(found, "user") == "inconclusive"
    assert found.upper_95 == pytest.approx(1 - 0.05 ** (1 / 30))
    assert found.needed_samples is not None and 280 <= found.needed_samples <= 320


def test_a_metric_that_is_not_finite_on_a_resample_is_named() -> None:
    with pytest.raises(DataError, match="nan"):
        bootstrap_interval(lambda outputs, _: float("nan"), torch.ones(5), torch.ones(5), None, 0.01, seed=0)


def test_the_verdict_follows_the_limits_and_training_samples_never_pass() -> None:
    assert decide(interval(0.0, -0.01, 0.01), "user") == "pass", "at the allowance is within it"
    assert decide(interval(0.0, -0.01, 0.005), "from_search") == "pass"
    assert decide(interval(0.0, -0.01, 0.005), "from_train") == "inconclusive"
    assert decide(interval(0.01, 0.005, 0.02), "user") == "inconclusive"
    assert decide(interval(0.03, 0.02, 0.04), "from_train") == "fail"


Finalists = list[tuple[str, Callable[[], tuple[DropInterval, str]]]]


def finalists(*uppers: float) -> tuple[Finalists, list[int]]:
    opened: list[int] = []

    def measure(place: int, upper: float) -> tuple[DropInterval, str]:
        opened.append(place)
        return interval(upper - 0.004, upper - 0.008, upper), "a test"

    return [(f"plan{i}", lambda i=i, u=u: measure(i, u)) for i, u in enumerate(uppers)], opened  # type: ignore[misc]


@pytest.mark.parametrize(
    ("uppers", "delivered", "tested"),
    [((0.005, 0.008, 0.02), 1, 3), ((0.005, 0.02, 0.001), 0, 2), ((0.02, 0.001, 0.001), 0, 1), ((0.001, 0.002, 0.003), 2, 3), ((0.02,), 0, 1)],
)
def test_the_last_finalist_that_passed_before_the_first_failure_is_delivered(uppers: tuple[float, ...], delivered: int, tested: int) -> None:
    sequence, opened = finalists(*uppers)
    place, kept, certificate = fixed_sequence(sequence, "user")
    assert place == delivered and kept.upper_95 == uppers[delivered]
    assert opened == list(range(tested)), "after a failure the holdout is not asked again"
    assert [s.plan for s in certificate.sequence] == [f"plan{i}" for i in range(tested)]
    assert [s.passed for s in certificate.sequence] == [u <= 0.01 for u in uppers[:tested]]
    assert certificate.test == "a test" and certificate.source == "user"


def test_the_sequence_makes_a_false_pass_in_at_most_5_percent() -> None:
    """Three finalists at the allowance, their errors independent: the last passes only if all do, and any false pass needs the first's."""
    runs, passes = 300, 0
    test = functools.cache(lambda k: drop_interval(*pair(k, 0, 150), 0.03))
    for _ in range(runs):
        lost = torch.binomial(torch.full((3,), 150.0), torch.full((3,), 0.03)).int().tolist()
        sequence: Finalists = [(str(i), functools.partial(test, k)) for i, k in enumerate(lost)]
        passes += any(s.passed for s in fixed_sequence(sequence, "user")[2].sequence)
    assert passes / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("count", [0, 4])
def test_a_sequence_is_of_one_to_three(count: int) -> None:
    with pytest.raises(ValueError, match="one to 3"):
        fixed_sequence(finalists(*[0.001] * count)[0], "user")


@pytest.mark.parametrize(("lost", "won", "n"), [(3, 3, 600), (8, 8, 1000), (60, 55, 1000), (300, 280, 10000), (0, 0, 300)])
def test_the_expected_half_width_is_that_of_the_certificate(lost: int, won: int, n: int) -> None:
    found, _ = drop_interval(*pair(lost, won, n), 0.5)
    assert expected_half_width((lost + won) / n, n) == pytest.approx(found.upper_95 - found.observed, rel=0.2)


@pytest.mark.parametrize(("mean", "spread", "n"), [(0.005, 0.003, 400), (0.02, 0.01, 2000), (0.0, 1e-5, 700)])
def test_the_half_width_of_cosines_is_that_of_the_certificate(mean: float, spread: float, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    seen, tested = ((mean + spread * torch.randn(k, generator=generator)).abs() for k in (500, n))
    found, _ = drop_interval(torch.ones(n), 1 - tested, 0.5)
    assert likely_half_width(torch.ones(500), 1 - seen, n) == pytest.approx(found.upper_95 - found.observed, rel=0.2)


def test_the_half_width_of_right_and_wrong_is_by_how_many_differ() -> None:
    assert likely_half_width(*pair(12, 8, 1000), 5000) == expected_half_width(0.02, 5000)


def test_graded_scores_whose_test_adds_little_are_likely_to_pass() -> None:
    assert chance(0.004, 1e-5, 500, 2000, 0.0065, 0.002) > 0.99 > 0.5 > chance(0.004, 1e-5, 500, 2000, 0.0055, 0.002)


def test_the_best_of_many_is_corrected_by_the_expected_minimum_of_their_errors() -> None:
    discordance, n, k = 0.05, 2000, 12
    error = math.sqrt(discordance / n)
    best = float((0.01 + error * torch.randn(4000, k)).min(1).values.mean())
    assert shrunk(best, discordance, n, k) == pytest.approx(0.01, abs=0.1 * error)
    assert shrunk(0.01, discordance, n, 1) == 0.01
    assert shrunk(0.01, discordance, n, 3) < shrunk(0.01, discordance, n, 30)


@pytest.mark.parametrize("seen", [300, 5000])
def test_what_finalists_lose_elsewhere_is_expected_better_than_what_was_seen(seen: int) -> None:
    """Models that lose 5 to 25 % of the scores in which they differ, seen on some samples and tested on others."""
    generator = np.random.default_rng(0)
    tested, allowed = 10_000, 0.01
    plain, tempered, promised, passed = [], [], [], []
    for _ in range(2000):
        discordance = generator.uniform(0.02, 0.08)
        true = discordance * generator.normal(LOST, KNOWN**-0.5)
        shares = [(discordance + true) / 2, (discordance - true) / 2, 1 - discordance]
        first, second = ((lost - won) / n for n in (seen, tested) for lost, won, _ in [generator.multinomial(n, shares)])
        drop, known = expected_drop(first, discordance, seen)
        plain.append(first - true)
        tempered.append(drop - true)
        promised.append(chance(drop, discordance, known, tested, allowed))
        passed.append(second + expected_half_width(discordance, tested) <= allowed)
    assert np.mean(np.square(tempered)) < 0.8 * np.mean(np.square(plain))
    assert abs(np.mean(tempered)) < 2e-4
    assert np.mean(passed) == pytest.approx(np.mean(promised), abs=0.03)
    sure = np.array(promised) > 0.8
    assert np.mean(np.array(passed)[sure]) == pytest.approx(np.mean(np.array(promised)[sure]), abs=0.04)


def test_a_large_drop_on_many_samples_is_what_is_expected() -> None:
    assert expected_drop(0.2, 0.3, 5000)[0] == pytest.approx(0.2, rel=0.1)
    assert expected_drop(0.0, 0.0, 1000) == pytest.approx((LOST / 1000, 161_000), rel=0.02)
    assert expected_drop(0.004, 0.05, 5000, 8)[0] > expected_drop(0.004, 0.05, 5000)[0]


def test_what_the_original_makes_likely_is_believed_unless_luck_cannot_explain_what_was_seen() -> None:
    discordance, seen = 0.05, 5000
    usual = usual_drop(discordance, seen, 0.016, trained=True)
    unlucky, known = expected_drop(0.001, discordance, seen, usual=usual)
    assert abs(unlucky - usual.drop) < abs(unlucky - 0.001) and known > 2 * seen
    harmed, _ = expected_drop(0.03, discordance, seen, usual=usual_drop(discordance, seen, 0.002))
    assert harmed > 0.025, "whatever the original believes"
    assert usual_drop(discordance, seen, 0.016).drop == pytest.approx(2 * usual.drop)
    assert usual_drop(0.0, seen, 0.0) == Usual(0.0, 1 / seen)


def test_a_step_in_the_middle_is_kept_where_the_daring_one_may_fail() -> None:
    assert best_sequence([1.0, 0.8, 0.5], [0.99, 0.95, 0.6], 2.0) == (0, 1, 2)
    assert best_sequence([1.0, 0.8, 0.5], [0.99, 0.3, 0.95], 2.0) == (0, 2), "a step that fails itself stands in the way"
    assert best_sequence([0.5, 0.8, 1.0], [0.99, 0.9, 0.9], 2.0) == (0,), "what is likeliest and cheapest needs no other"
    assert best_sequence([0.0265, 0.0122, 0.0037, 0.0021], [0.98, 0.75, 0.6, 0.4], 1.0) == (0, 2, 3), "ratios count, not shares of the original"
    prices, chances = [0.41, 0.23, 0.145], [0.999, 0.986, 0.06]
    assert best_sequence(prices, chances, 1.3) == (0, 1, 2), "what is sure costs nothing but its place"


def test_the_chance_follows_simulated_certificates() -> None:
    generator = np.random.default_rng(0)
    seen, tested, discordance, true, allowed = 2000, 4000, 0.06, 0.004, 0.01
    shares = [(discordance + true) / 2, (discordance - true) / 2, 1 - discordance]
    expected, passed = [], []
    for _ in range(1000):
        first, second = ((lost - won) / n for n in (seen, tested) for lost, won, _ in [generator.multinomial(n, shares)])
        expected.append(chance(first, discordance, seen, tested, allowed))
        passed.append(second + expected_half_width(discordance, tested) <= allowed)
    assert abs(np.mean(passed) - np.mean(expected)) < 0.1


def test_macro_f1_passes_as_seldom_as_it_says_where_one_class_is_rare() -> None:
    """Models exactly at the allowance, of which 300 samples with about 15 of the rarest class are seen: the plain bootstrap passes one in eight."""
    draw = np.random.default_rng(1)
    truth = draw.choice(4, 200_000, p=[0.5, 0.3, 0.15, 0.05])
    first = np.where(draw.random(truth.size) < 0.1, draw.integers(0, 4, truth.size), truth)
    second = np.where(draw.random(truth.size) < 0.04, draw.integers(0, 4, truth.size), first)
    labels, scores = torch.from_numpy(truth), [torch.eye(4)[torch.from_numpy(g)] for g in (first, second)]
    allowed = f1(scores[0], labels) - f1(scores[1], labels)
    verdicts = []
    for seed in range(200):
        index = torch.from_numpy(draw.integers(0, truth.size, 300))
        interval, _ = bootstrap_interval(f1, scores[0][index], scores[1][index], labels[index], allowed, seed, resamples=100)
        verdicts.append(decide(interval, "user"))
    assert verdicts.count("pass") <= 0.086 * 200 and verdicts.count("fail") <= 0.086 * 200, "5 % and 2.33 standard errors"
