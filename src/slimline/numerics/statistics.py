"""Confidence limits that hold their level: of a difference of paired proportions, and of a mean of bounded values.

Both limits are one-sided and at small samples as honest as at large ones: the true value lies above the upper
limit in at most ``1 - confidence`` of all cases. Where a limit can only be approximate it errs upwards.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

CONFIDENCE = 0.95
NUISANCE = 1e-4  # share of the 5 % that is spent on bounding the share of differing pairs (Berger and Boos recommend 1e-4 to 1e-3)
NUISANCE_POINTS = 33  # about four per standard error of that share
TAIL = 7.5  # standard errors of a binomial count beyond which less than 1e-13 is left

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def paired_score(lost: npt.ArrayLike, won: npt.ArrayLike, n: int, difference: float) -> Values:
    """Score statistic of the hypothesis that the difference of paired proportions is ``difference``; negative where fewer were lost than it says.

    ``lost``, ``won``: pairs (of ``n``) that only the first, and only the second of the two got right.
    Unlike Wald's, the variance is the one under the hypothesis, so that it is right at few or no differing pairs, too.

    References:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 17, 1998, eq. 8-10.

    Example:
        At a difference of 0 it is McNemar's statistic, ``(lost - won) / sqrt(lost + won)``:

        >>> round(float(paired_score(12, 4, 500, 0.0)), 6)
        2.0
    """
    lost, won = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    b = -lost - won + (2 * n - lost + won) * difference
    c = -won * difference * (1 - difference)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # the share won, as likely as can be under the hypothesis
    variance = n * (2 * q + difference * (1 - difference))
    gap = lost - won - n * difference
    return np.asarray(gap / np.sqrt(np.maximum(variance, 1e-300)))


def paired_p_value(lost: int, won: int, n: int, difference: float) -> float:
    """Chance, at most, of a score as low as this one if the true difference is ``difference``, or more.

    The exact unconditional test: the two counts are multinomial, the score orders them, and the chance is the
    largest over every plausible share of differing pairs (its 99.99 % interval; the remaining 0.01 % is added).
    The score test alone refers to a normal distribution and passes up to 6.6 % at few differing pairs.

    Raises:
        ValueError: counts that do not fit into ``n`` pairs.

    References:
        Hsueh, Liu and Chen, "Unconditional exact tests for equivalence or noninferiority for paired binary endpoints", Biometrics 57, 2001.
        Berger and Boos, "P values maximized over a confidence set for the nuisance parameter", JASA 89, 1994.

    Example:
        Without any differing pair the chance is that of missing a share of ``d`` in n draws, ``(1 - d) ** n``:

        >>> round(paired_p_value(0, 0, 300, 0.01), 3), round(0.99**300, 3)
        (0.049, 0.049)
    """
    if min(lost, won) < 0 or lost + won > n or n < 1:
        raise ValueError(f"{lost} lost and {won} won do not fit into {n} pairs")
    differing = lost + won
    low = float(stats.beta.ppf(NUISANCE / 2, differing, n - differing + 1)) if differing else 0.0
    high = float(stats.beta.ppf(1 - NUISANCE / 2, differing + 1, n - differing)) if differing < n else 1.0
    low = min(max(low, abs(difference), 1e-12), 1.0)  # a difference of d takes at least a share of d
    shares = np.linspace(low, max(low, high), NUISANCE_POINTS)
    tail = TAIL * math.sqrt(n * min(shares[-1] * (1 - shares[0]), 0.25)) + TAIL**2
    counts = np.arange(max(0, math.floor(n * shares[0] - tail)), min(n, math.ceil(n * shares[-1] + tail)) + 1)
    most = _most_lost(counts, n, difference, float(paired_score(lost, won, n, difference)) + 1e-9)
    share = shares[:, None]
    chance = stats.binom.pmf(counts, n, share) * stats.binom.cdf(most, counts, np.minimum((share + difference) / (2 * share), 1.0))
    return min(float(chance.sum(axis=1).max()) + NUISANCE, 1.0)


def _most_lost(differing: Counts, n: int, difference: float, limit: float) -> Counts:
    """For each number of differing pairs, the most that may be lost at a score of at most ``limit``; -1 where none may. The score rises with the lost."""
    low, high = np.full_like(differing, -1), differing + 1
    while (high - low > 1).any():
        middle = (low + high) // 2
        fits = (middle >= 0) & (paired_score(np.maximum(middle, 0), differing - middle, n, difference) <= limit)
        low, high = np.where(fits, middle, low), np.where(fits, high, np.maximum(middle, low + 1))
    return low


@functools.lru_cache(maxsize=4096)  # of many classes, most lose the same few samples
def paired_upper(lost: int, won: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Upper limit of ``(lost - won) / n``: the smallest difference from which on ``paired_p_value`` refutes. Within about 1e-4 of its distance from the observed one, rounded up.

    The lower limit is ``-paired_upper(won, lost, n)``.

    Example:
        >>> round(paired_upper(6, 2, 600), 3)
        0.016
    """
    observed = (lost - won) / n
    step = float(stats.norm.ppf(confidence)) * math.sqrt(max(lost + won, 1)) / n
    level = 1 - confidence

    def excess(difference: float) -> float:
        return paired_p_value(lost, won, n, difference) - level

    low, high = observed, observed + step
    while high < 1 and excess(high) > 0:
        low, high = high, high + step
    if high >= 1:
        high = 1 - 1e-9
        if excess(high) > 0:
            return 1.0
    limit = float(optimize.brentq(excess, low, high, xtol=1e-4 * step)) if excess(low) > 0 else low
    while limit < high and excess(limit) > 0:
        limit += 1e-4 * step
    return min(limit, high)


def mean_upper(values: npt.ArrayLike, worst: float, weights: npt.ArrayLike | None = None, confidence: float = CONFIDENCE) -> float:
    """Upper limit of the mean of a distribution on ``(-inf, worst]``, from a sample of it.

    Gaffke's limit: the quantile of a randomly weighted mean (weights uniform on the simplex) of the sample and one
    more value, the worst that there is. For values of 0 and 1 this is exactly Clopper and Pearson's limit; with many values of
    small spread it is Student's. No distribution is known on which it misses its level, though only special cases are proven.
    Rare large values that a sample may have missed are paid for by the added one, which Student's t forgets.

    ``weights``: how often each value occurred (also fractions: what a sample ``k`` times as large would give).
    The quantile is computed by saddlepoint, exact within about 0.3 % of the limit's distance from the mean.

    Raises:
        ValueError: no values, or one beyond ``worst``.

    References:
        Gaffke, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable",
        Mathematical Methods of Statistics 14, 2005. Learned-Miller and Thomas, "A new confidence interval for the mean of a
        bounded random variable", 2019 (numerical evidence). Lugannani and Rice, Advances in Applied Probability 12, 1980.

    Example:
        Three in 300, and the exact limit of a binomial proportion:

        >>> round(mean_upper([0, 1], 1.0, [297, 3]), 4), round(float(stats.beta.ppf(0.95, 4, 297)), 4)
        (0.0256, 0.0256)
    """
    x = np.asarray(values, np.float64)
    if x.size == 0 or float(x.max()) > worst:
        raise ValueError(f"{x.size} values with the largest {x.max() if x.size else 'missing'}, the worst possible being {worst}")
    k = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    x, k = np.append(x[k > 0], worst), np.append(k[k > 0], 1.0)
    if float(x.min()) == worst:
        return worst
    middle = float((x * k).sum() / k.sum())

    def above(limit: float) -> float:
        return _weighted_sum_below_zero(x - limit, k) - confidence

    far = worst - 1e-9 * (worst - middle)
    return float(optimize.brentq(above, middle, far, xtol=1e-12 * max(abs(worst), worst - float(x.min())))) if above(far) > 0 else worst


def _weighted_sum_below_zero(values: Values, shapes: Values) -> float:
    """P(sum of ``values`` times independent gamma variables of these ``shapes`` <= 0), by Lugannani and Rice. Both signs occur in ``values``."""
    low, high = (1 - 1e-12) / float(values.min()), (1 - 1e-12) / float(values.max())

    def slope(s: float) -> float:
        return float((shapes * values / (1 - s * values)).sum())

    if slope(low) >= 0 or slope(high) <= 0:  # the saddle is within rounding of the edge: all of the mass is on one side
        return 1.0 if slope(high) <= 0 else 0.0
    near = 1e-13 / math.sqrt(float((shapes * values**2).sum()))  # of the mean the saddle is at zero, to which no step is small
    s = float(optimize.brentq(slope, low, high, xtol=max(near, 1e-300), rtol=1e-14, maxiter=1000))
    exponent = float((shapes * np.log1p(-s * values)).sum())
    curvature = float((shapes * values**2 / (1 - s * values) ** 2).sum())
    w = math.copysign(math.sqrt(max(2 * exponent, 0.0)), s)
    v = s * math.sqrt(curvature)
    if abs(w) < 1e-3:
        return 0.5
    return float(stats.norm.cdf(w) + stats.norm.pdf(w) * (1 / w - 1 / v))


def median_limits(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """One-sided limits, each at ``confidence``, of the median of what independent ``values`` are drawn from, whatever its distribution.

    Order statistics: fewer than k of n values lie below the median with a binomial chance. Infinite where there are too few values
    (five are needed for 95 %).

    References:
        Conover, "Practical Nonparametric Statistics", 3rd edition 1999, section 3.2.

    Example:
        >>> median_limits(range(1, 12)), median_limits([1, 2, 3, 4])
        ((3.0, 9.0), (-inf, inf))
    """
    x = np.sort(np.asarray(values, np.float64))
    rank = int(stats.binom.ppf(1 - confidence, len(x), 0.5))
    rank -= int(stats.binom.cdf(rank, len(x), 0.5) > 1 - confidence)  # the most values that may lie outside of the limit
    if rank < 0:
        return -math.inf, math.inf
    return float(x[rank]), float(x[len(x) - 1 - rank])
