from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from slimline.numerics.statistics import _weighted_sum_below_zero, mean_upper, paired_p_value, paired_score, paired_upper


def slow_score(lost: int, won: int, n: int, difference: float) -> float:
    """The statistic with the likelihood under the hypothesis maximised on a fine grid."""
    q = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = lost * np.log(q + difference) + won * np.log(q) + (n - lost - won) * np.log(1 - 2 * q - difference)
    best = float(q[np.nanargmax(likelihood)])
    return (lost - won - n * difference) / math.sqrt(n * (2 * best + difference - difference**2))


@pytest.mark.parametrize(("lost", "won", "n", "difference"), [(6, 2, 600, 0.02), (30, 35, 500, 0.01), (3, 9, 100, -0.02), (40, 1, 90, 0.3), (5, 5, 50, -0.1)])
def test_the_score_uses_the_most_likely_variance_under_the_hypothesis(lost: int, won: int, n: int, difference: float) -> None:
    assert float(paired_score(lost, won, n, difference)) == pytest.approx(slow_score(lost, won, n, difference), rel=1e-3)


def slow_p_value(lost: int, won: int, n: int, difference: float) -> float:
    """The sum over every table at least as low, for every plausible share of differing pairs."""
    tables = [(a, b) for a in range(n + 1) for b in range(n + 1 - a)]
    a, b = np.array(tables).T
    inside = paired_score(a, b, n, difference) <= float(paired_score(lost, won, n, difference)) + 1e-9
    logs = math.lgamma(n + 1) - np.array([math.lgamma(x + 1) + math.lgamma(y + 1) + math.lgamma(n - x - y + 1) for x, y in tables])
    chances = []
    low = float(stats.beta.ppf(5e-5, lost + won, n - lost - won + 1)) if lost + won else 0.0
    high = float(stats.beta.ppf(1 - 5e-5, lost + won + 1, n - lost - won))
    for share in np.linspace(max(low, abs(difference), 1e-9), min(high, 1 - 1e-9), 300):
        p, q = max((share + difference) / 2, 1e-300), max((share - difference) / 2, 1e-300)
        chances.append(float(np.exp(logs + a * math.log(p) + b * math.log(q) + (n - a - b) * math.log1p(-share))[inside].sum()))
    return max(chances)


@pytest.mark.parametrize(
    ("lost", "won", "n", "difference"), [(0, 0, 30, 0.1), (1, 3, 40, 0.05), (2, 0, 40, 0.2), (5, 8, 40, 0.0), (6, 1, 25, -0.05), (1, 8, 30, -0.05)]
)
def test_the_p_value_is_the_sum_over_all_tables_at_the_worst_plausible_share(lost: int, won: int, n: int, difference: float) -> None:
    assert paired_p_value(lost, won, n, difference) == pytest.approx(slow_p_value(lost, won, n, difference) + 1e-4, rel=5e-3)  # the grid's


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("difference", [-0.05, 0.0, 0.01, 0.2])
def test_the_score_rises_with_the_lost_at_any_number_of_differing_pairs(n: int, difference: float) -> None:
    for differing in range(n + 1):
        lost = np.arange(differing + 1)
        assert (np.diff(paired_score(lost, differing - lost, n, difference)) >= -1e-9).all()


@pytest.mark.parametrize(("n", "allowed"), [(60, 0.05), (100, 0.01), (150, 0.02), (300, 0.01), (600, 0.02)])
def test_the_chance_of_a_false_pass_is_at_most_5_percent_whatever_the_share_of_differing_pairs(n: int, allowed: float) -> None:
    """Not simulated: the chances of all tables that pass are added."""
    share = np.linspace(allowed, 0.1, 60)[:, None]
    differing = np.arange(int(0.1 * n + 7 * math.sqrt(0.09 * n)))  # more have no weight
    most, low = np.empty_like(differing), -1
    for m in differing.tolist():
        while low < m and paired_p_value(low + 1, m - low - 1, n, allowed) <= 0.05:
            low += 1
        most[m] = low
    chance = (stats.binom.pmf(differing, n, share) * stats.binom.cdf(most, differing, (share + allowed) / (2 * share))).sum(1)
    assert chance.max() <= 0.05
    if n * allowed > 4:
        assert chance.max() > 0.03, "and it is not bought with power"


def test_one_sided_limits_mirror_each_other_and_enclose_the_observed() -> None:
    for lost, won, n in ((0, 0, 50), (6, 2, 600), (40, 55, 1000), (1, 0, 1), (0, 5, 5)):
        assert -paired_upper(won, lost, n) <= (lost - won) / n <= paired_upper(lost, won, n)


def test_without_a_differing_pair_the_limit_is_the_exact_binomial_one() -> None:
    assert paired_upper(0, 0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), rel=5e-3)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paired_p_value(3, 3, 5, 0.0)


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (1, 20), (3, 300), (200, 1000), (19, 20)])
def test_the_mean_of_zeros_and_ones_has_clopper_and_pearsons_limit(hits: int, n: int) -> None:
    exact = float(stats.beta.ppf(0.95, hits + 1, n - hits))
    assert mean_upper([0.0, 1.0], 1.0, [n - hits, hits]) - hits / n == pytest.approx(exact - hits / n, rel=5e-3)  # the saddlepoint's
    assert mean_upper(np.repeat([0.0, 1.0], [n - hits, hits]), 1.0) == pytest.approx(exact, rel=5e-3)


def test_the_limit_is_the_quantile_of_weighted_means() -> None:
    generator = np.random.default_rng(0)
    for values in (generator.normal(0, 0.1, 50), generator.exponential(0.05, 80), np.repeat([-0.5, 0.0, 0.25], [3, 40, 7])):
        weights = generator.dirichlet(np.ones(len(values) + 1), 40_000)
        drawn = float(np.quantile(weights @ np.append(values, 1.0), 0.95))
        spread = drawn - float(values.mean())
        assert mean_upper(values, 1.0) - values.mean() == pytest.approx(spread, rel=0.03)  # of the drawn quantile: about 1 %


def test_with_many_values_of_small_spread_the_limit_is_students() -> None:
    values = np.random.default_rng(1).normal(0.0, 0.1, 4000)
    student = values.mean() + stats.t.ppf(0.95, 3999) * values.std(ddof=1) / math.sqrt(4000)
    assert mean_upper(values, 0.5) == pytest.approx(student, abs=2.5e-4)
    assert mean_upper(values, 0.5) > student


def test_a_rare_great_loss_is_paid_for_where_students_limit_misses_it() -> None:
    """1 % of the samples lose 1, the others nothing: Student's limit is 0 with chance 0.99**100 = 37 %."""
    generator = np.random.default_rng(2)
    lost = generator.binomial(100, 0.01, 2000)
    limits = {k: mean_upper([0.0, 1.0], 1.0, [100 - k, k]) for k in set(lost.tolist())}
    assert np.mean([limits[k] < 0.01 for k in lost.tolist()]) <= 0.05
    assert np.mean(lost == 0) > 0.3


@pytest.mark.parametrize("draw", ["skewed", "lumpy", "uniform"])
def test_the_mean_lies_above_its_limit_in_at_most_5_percent(draw: str) -> None:
    generator = np.random.default_rng(3)
    make = {
        "skewed": lambda: generator.beta(0.2, 4, 40),  # mean 0.2 / 4.2
        "lumpy": lambda: np.where(generator.random(40) < 0.05, generator.choice([0.5, 1.0], 40), 0.0),  # mean 0.0375
        "uniform": lambda: generator.random(40),
    }[draw]
    mean = {"skewed": 0.2 / 4.2, "lumpy": 0.0375, "uniform": 0.5}[draw]
    misses = np.mean([mean_upper(make(), 1.0) < mean for _ in range(250)])
    assert misses <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 250)


def test_a_larger_sample_of_the_same_values_has_a_closer_limit() -> None:
    limits = [mean_upper([0.0, 0.1], 1.0, [90 * k, 10 * k]) for k in (1, 2.5, 10)]
    assert limits[0] > limits[1] > limits[2] > 0.01


def test_values_beyond_the_worst_and_none_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="worst possible"):
        mean_upper([0.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="worst possible"):
        mean_upper([], 1.0)
    assert mean_upper([1.0, 1.0], 1.0) == 1.0


def test_at_the_mean_the_saddle_is_found_at_zero() -> None:
    """Rounding puts it at 1e-17 or so, to which no relative step is small: one in a hundred searches for it never ended, and a run with it."""
    for seed in range(600):
        draw = np.random.default_rng(seed)
        count = int(draw.integers(2, 60))
        values, weights = draw.normal(size=count) * 10 ** draw.uniform(-6, 3), draw.integers(1, 2000, count) * draw.uniform(0.5, 3)
        mean = float((values * weights).sum() / weights.sum())
        assert _weighted_sum_below_zero(values - mean * (1 + 1e-15), weights) == pytest.approx(0.5, abs=1e-3)
