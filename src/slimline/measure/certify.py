"""The certificate: how much quality was lost, at most, with 95 % confidence.

The same samples are scored by the original and by the artefact, so the differences are paired.
A limit is one-sided: ``upper_95`` is exceeded by the true drop in at most 5 % of all cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy import optimize, stats

from slimline.core.result import Certificate, DropInterval, SequenceStep, Verdict

CONFIDENCE = 0.95
Z = float(stats.norm.ppf(CONFIDENCE))
Source = Literal["user", "from_search", "from_train"]
RESAMPLES = 2_000


def drop_interval(baseline: torch.Tensor, compressed: torch.Tensor, allowed: float) -> tuple[DropInterval, str]:
    """Interval of the mean of ``baseline - compressed`` (per-sample scores ``[N]``), and the test's name.

    Scores of 0 and 1: the score interval for a difference of paired proportions, which holds its
    level at small counts where the Wald interval does not. Any other scores: Student's t on the
    paired differences.

    References:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17, 1998, eq. 8-10.

    Example:
        >>> a, b = torch.ones(1000), torch.ones(1000)
        >>> b[:2] = 0
        >>> interval, test = drop_interval(a, b, 0.01)
        >>> interval.upper_95 < 0.01
        True
    """
    a, b = baseline.double().numpy(), compressed.double().numpy()
    n, difference = len(a), a - b
    observed = float(difference.mean())
    if set(np.unique(a)) | set(np.unique(b)) <= {0.0, 1.0}:
        lost, won = int((difference > 0).sum()), int((difference < 0).sum())
        lower, upper = _tango(lost, won, n)
        test = "score interval for paired proportions (Tango 1998)"
        spread = (lost + won) / n - observed**2
    else:
        half = float(stats.t.ppf(CONFIDENCE, max(n - 1, 1)) * difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
        lower, upper = observed - half, observed + half
        test = "paired t interval on per-sample scores"
        spread = float(difference.var(ddof=1)) if n > 1 else math.inf
    return _interval(observed, lower, upper, allowed, n, spread), test


def bootstrap_interval(metric: Callable[[Any, Any], Any], baseline: Any, compressed: Any, targets: Any, allowed: float, seed: int) -> tuple[DropInterval, str]:
    """Interval for a metric that is one number for all samples (F1, AUROC): samples are drawn again, the same for both models.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3 (percentile interval).
    """
    from torch.utils import _pytree

    def at(tree: Any, index: torch.Tensor) -> Any:
        return None if tree is None else _pytree.tree_map(lambda t: t[index], tree)

    n = len(_pytree.tree_leaves(baseline)[0])
    generator = torch.Generator().manual_seed(seed)
    drops = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        index = torch.randint(n, (n,), generator=generator)
        drops[i] = float(metric(at(baseline, index), at(targets, index))) - float(metric(at(compressed, index), at(targets, index)))
    observed = float(metric(baseline, targets)) - float(metric(compressed, targets))
    lower, upper = (float(v) for v in np.quantile(drops, [1 - CONFIDENCE, CONFIDENCE]))
    return _interval(observed, lower, upper, allowed, n, float(drops.var()) * n), "paired bootstrap (percentile)"


def _tango(lost: int, won: int, n: int) -> tuple[float, float]:
    """Roots of the score statistic in the difference of paired proportions, one-sided 95 % each."""

    def statistic(d: float) -> float:
        a = 2 * n
        b = -lost - won + (2 * n - lost + won) * d
        c = -won * d * (1 - d)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + d * (1 - d))
        gap = lost - won - n * d
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    point = (lost - won) / n
    edge = 1 - 1e-9
    upper = optimize.brentq(lambda d: statistic(d) + Z, point, edge) if point < edge and statistic(edge) < -Z else 1.0
    lower = optimize.brentq(lambda d: statistic(d) - Z, -edge, point) if point > -edge and statistic(-edge) > Z else -1.0
    return float(lower), float(upper)


def _interval(observed: float, lower: float, upper: float, allowed: float, n: int, spread: float) -> DropInterval:
    undecided = upper > allowed >= lower
    needed = None
    if undecided and observed != allowed and math.isfinite(spread):
        needed = max(n + 1, math.ceil(Z * Z * max(spread, 1e-12) / (allowed - observed) ** 2))
    return DropInterval(observed=observed, lower_95=lower, upper_95=upper, allowed=allowed, samples=n, needed_samples=needed)


def decide(interval: DropInterval, source: Source) -> Verdict:
    """``pass`` if the upper limit is within the allowance (never on samples that the original was trained on), ``fail`` if the lower one is beyond it."""
    if interval.lower_95 > interval.allowed:
        return "fail"
    if interval.upper_95 <= interval.allowed and source != "from_train":
        return "pass"
    return "inconclusive"


def fixed_sequence(intervals: Sequence[tuple[str, Callable[[], tuple[DropInterval, str]]]], source: Source) -> tuple[int, DropInterval, Certificate]:
    """Test finalists in their fixed order, each at 5 %, until the first that fails; the last that passed is delivered.

    The order was fixed before the holdout was opened, and a later finalist is tested only if all before
    it passed, so that the chance of any false pass is 5 % in all.
    ``intervals``: ``(plan digest, function that measures and tests it)``. Returns the index of what is
    delivered (the first if none passed), its interval and the certificate.

    References:
        Maurer, Hothorn and Lehmacher, "Multiple comparisons in drug clinical trials and preclinical
        assays: a-priori ordered hypotheses", 1995.
        Westfall and Krishen, "Optimally weighted, fixed sequence and gatekeeper multiple testing
        procedures", Journal of Statistical Planning and Inference 99, 2001.
    """
    steps: list[SequenceStep] = []
    chosen, kept, test = 0, None, ""
    for place, (plan, measure) in enumerate(intervals):
        interval, test = measure()
        passed = interval.upper_95 <= interval.allowed
        steps.append(SequenceStep(plan=plan, observed=interval.observed, upper_95=interval.upper_95, passed=passed))
        if kept is None or passed:
            chosen, kept = place, interval
        if not passed:
            break
    assert kept is not None
    return chosen, kept, Certificate(source=source, test=test, sequence=tuple(steps))


def expected_half_width(discordance: float, samples: int) -> float:
    """Half-width of the one-sided interval to expect on ``samples`` of the holdout, from the share of samples on which the two models differ."""
    return Z * math.sqrt(max(discordance, 1.0 / max(samples, 1)) / max(samples, 1))


def shrunk(drop: float, discordance: float, samples: int, candidates: int) -> float:
    """The drop to expect of the best of ``candidates`` by their drops on ``samples``.

    The smallest of k noisy drops is too small by about its standard error times the expected
    maximum of k standard normals.

    References:
        Blom, "Statistical Estimates and Transformed Beta-Variables", 1958 (expected order statistics).
    """
    if candidates < 2 or samples < 1:
        return drop
    error = math.sqrt(max(discordance, 1.0 / samples) / samples)
    return drop + error * float(stats.norm.ppf((candidates - 0.375) / (candidates + 0.25)))
