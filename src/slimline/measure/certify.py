"""The certificate: how much quality was lost, at most, with 95 % confidence.

The same samples are scored by the original and by the artefact, so the differences are paired.
A limit is one-sided: ``upper_95`` is exceeded by the true drop in at most 5 % of all cases. At the
allowance that is the chance of a false ``pass``, whatever the number of samples and however few differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

from slimline.core.result import Certificate, DropInterval, SequenceStep, Verdict
from slimline.errors import DataError
from slimline.numerics.statistics import CONFIDENCE, Values, mean_upper, paired_p_value, paired_score, paired_upper

Z = float(stats.norm.ppf(CONFIDENCE))
Source = Literal["user", "from_search", "from_train"]
RESAMPLES = 2_000
RARE = 0.5  # of the mean size of a class
MOST_FINALISTS = 3
AS_LIKELY, CHEAPER = 0.02, 0.995  # chances that are as good as equal; of a price, below which another is worth a step
EXACT_SAMPLES = 50_000  # beyond this many, exact and asymptotic counts of samples agree within a percent
GROWTH = 1.05  # steps in which the number of samples that is needed is sought
LEAST_GAP = 1e-9  # a drop this close to the allowance is at it: no number of samples decides
TRAINED = 0.5  # of the likely drop, that what was trained loses: 0.36 to 0.68 of nine stages of ResNet-20 (benchmarks/likely_drop.py)
DOUBT = 0.15  # of the likely drop: the scatter of what is lost, trained or not
BEYOND = 3.0  # standard errors of what was seen from what is usual, that luck explains
LOST = 0.18  # of the scores that differ, how many more are lost than won: the mean of 19 finalists on the holdouts of ResNet-20 and LeNet-5 (benchmarks/lost_elsewhere.py)
KNOWN = 160  # scores that differ, which say as much as that: the scatter of those 19, beyond what their samples explain, was 0.079


def drop_interval(baseline: torch.Tensor, compressed: torch.Tensor, allowed: float) -> tuple[DropInterval, str]:
    """Interval of the mean of ``baseline - compressed`` (per-sample scores ``[N]``, the same samples), and the test's name.

    Scores of 0 and 1: the exact unconditional test, ordered by the score statistic. Scores within [0, 1] or [-1, 1] (those
    with a positive one among them: cosines, not negated errors): Gaffke's limit, which counts one more sample as lost entirely and
    so holds without assumptions on how the differences are distributed. Any other scores have no worst value: the same limit, the
    largest difference seen standing in for it; that a loss larger than any seen is rare, is then an assumption.

    Raises:
        DataError: no scores, unequal numbers of them, or one that is not finite.

    References:
        ``slimline.numerics.statistics``, which holds both limits.

    Example:
        >>> a, b = torch.ones(1000), torch.ones(1000)
        >>> b[:2] = 0
        >>> interval, test = drop_interval(a, b, 0.01)
        >>> interval.upper_95 < 0.01, interval.needed_samples
        (True, None)
    """
    a, b = _scores(baseline, "original"), _scores(compressed, "compressed model")
    if len(a) != len(b):
        raise DataError(
            f"There are {len(a)} scores of the original and {len(b)} of the compressed model.",
            hint="metric(outputs, targets) must return one score for each sample.",
        )
    values = np.concatenate([a, b])
    if np.isin(values, (0.0, 1.0)).all():
        return _exact(int((a > b).sum()), int((a < b).sum()), len(a), allowed), "exact unconditional score test of paired proportions"
    bounded, worst = _worst(a, b)
    return _gaffke(a - b, worst, allowed), f"Gaffke's limit of {'bounded paired scores' if bounded else 'paired scores, none worse than the worst seen'}"


def _worst(a: Values, b: Values) -> tuple[bool, float]:
    """Whether scores are within [0, 1] or [-1, 1], and the most that one sample can lose."""
    values = np.concatenate([a, b])
    if values.min() >= -1 and 0 < values.max() <= 1:
        return True, 1.0 if values.min() >= 0 else 2.0
    return False, float(np.abs(a - b).max()) or float(np.ptp(values)) or 1.0


def likely_half_width(baseline: torch.Tensor, compressed: torch.Tensor, samples: int) -> float:
    """What the upper limit on ``samples`` others will add to the observed drop, if the two models' scores differ there as on these.

    Scores of 0 and 1: by how many differ. Graded ones (cosines) mostly differ by little, and on every sample: what ``drop_interval`` would
    add to the same differences, so many times as often.

    Raises:
        DataError: as ``drop_interval``.
    """
    a, b = _scores(baseline, "original"), _scores(compressed, "compressed model")
    if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        return expected_half_width(float(np.abs(a - b).mean()), samples)
    seen, counts = np.unique(a - b, return_counts=True)
    return mean_upper(seen, _worst(a, b)[1], counts * (samples / len(a))) - float((a - b).mean())


def _scores(scores: torch.Tensor, whose: str) -> Values:
    if scores.ndim != 1 or not len(scores):
        raise DataError(
            f"The scores of the {whose} have the shape {tuple(scores.shape)}.", hint="A certificate takes at least one sample, and one score for each."
        )
    found: Values = scores.detach().cpu().double().numpy()
    if not np.isfinite(found).all():
        raise DataError(
            f"{int((~np.isfinite(found)).sum())} of {len(found)} scores of the {whose} are not finite.", hint="Check metric(outputs, targets) and the outputs."
        )
    return found


def _exact(lost: int, won: int, n: int, allowed: float) -> DropInterval:
    lower, upper = -paired_upper(won, lost, n), paired_upper(lost, won, n)
    if upper <= allowed and paired_p_value(lost, won, n, allowed) > 1 - CONFIDENCE:
        upper = math.nextafter(allowed, math.inf)  # p-values fall with the difference only nearly: the one at the allowance decides
    observed = (lost - won) / n

    def samples() -> int:
        count = max(n + 1, math.ceil(n * (Z / float(paired_score(lost, won, n, allowed))) ** 2))
        worse = observed > allowed
        while count < EXACT_SAMPLES:
            more, fewer = round(lost * count / n), round(won * count / n)
            if (paired_p_value(fewer, more, count, -allowed) if worse else paired_p_value(more, fewer, count, allowed)) <= 1 - CONFIDENCE:
                break
            count = math.ceil(count * GROWTH)
        return count

    return _interval(observed, lower, upper, allowed, n, samples)


def _gaffke(difference: Values, worst: float, allowed: float) -> DropInterval:
    n, observed = len(difference), float(difference.mean())
    seen, counts = np.unique(difference, return_counts=True)

    def samples() -> int:
        count = max(n + 1, math.ceil(Z * Z * float(difference.var()) / (allowed - observed) ** 2))
        side = -1.0 if observed > allowed else 1.0
        while mean_upper(side * seen, worst, counts * (count / n)) > side * allowed:
            count = math.ceil(count * GROWTH)
        return count

    return _interval(observed, -mean_upper(-seen, worst, counts), mean_upper(seen, worst, counts), allowed, n, samples)


def bootstrap_interval(
    metric: Callable[[Any, Any], Any], baseline: Any, compressed: Any, targets: Any, allowed: float, seed: int, resamples: int = RESAMPLES
) -> tuple[DropInterval, str]:
    """Interval for a metric that is one number for all samples (F1, AUROC): samples are drawn again, the same ones for both models.

    ``baseline``, ``compressed``, ``targets``: pytrees of tensors ``[N, ...]``. The percentiles are widened by what Student's
    t is wider than the normal distribution, and the limits lie at least as far from the observed drop as a share
    of samples goes that may have been missed altogether (``1 - 0.05 ** (1 / N)``, for metrics in [0, 1]): two models that agree on
    every one of ten samples are not certified to be equal. Where one class is much rarer than others, each resample also loses a Poisson(1) number of its samples, for one
    loss that the holdout may not hold: macro F1 on 300 samples with 15 of that class passed 12 % of all models that were exactly at the allowance (``benchmarks/gate.py``).

    Raises:
        DataError: no samples, or a metric that is not a finite number on some resample.

    References:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3 (percentile interval).
        Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015, section 4.2 (expanded percentiles).
        Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934 (one event more than was seen).
    """
    from torch.utils import _pytree

    def at(tree: Any, index: torch.Tensor) -> Any:
        return _pytree.tree_map_only(torch.Tensor, lambda t: t[index], tree)

    def quality(outputs: Any, index: torch.Tensor, truth: Any) -> float:
        value = float(metric(at(outputs, index), truth))
        if not math.isfinite(value):
            raise DataError(
                f"The metric is {value} on a resample of {n} samples.",
                hint="It must be finite on any of them; return per-sample scores [N] if there are some.",
            )
        return value

    n = len(next(t for t in _pytree.tree_leaves(baseline) if isinstance(t, torch.Tensor)))
    if n < 2:
        raise DataError(f"The holdout has {n} samples.", hint="A certificate takes at least two.")
    everything = torch.arange(n)
    observed = quality(baseline, everything, targets) - quality(compressed, everything, targets)
    generator = torch.Generator().manual_seed(seed)
    rare = _rarest(targets)
    found = []
    for _ in range(resamples):
        index = torch.randint(n, (n,), generator=generator)
        truth, lost = at(targets, index), _one_more(index, rare, generator)
        first, second = quality(baseline, index, truth), quality(compressed, index, truth)
        worse = (first, second) if lost is index else (quality(baseline, lost, truth), quality(compressed, lost, truth))
        found.append((first, second, *worse))
    values = np.array(found)
    drops, most, fewest = values[:, 0] - values[:, 1], values[:, 0] - values[:, 3], values[:, 2] - values[:, 1]
    level = float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(CONFIDENCE, n - 1)))
    least = 1 - (1 - CONFIDENCE) ** (1 / n) if values.min() >= 0 and values.max() <= 1 else 0.0
    lower = min(float(np.quantile(np.minimum(drops, fewest), 1 - level, method="lower")), observed - least)
    upper = max(float(np.quantile(np.maximum(drops, most), level, method="higher")), observed + least)

    def samples() -> int:
        gap = abs(allowed - observed)
        return max(n + 1, math.ceil(Z * Z * float(drops.var()) * n / gap**2), math.ceil(n * least / gap))

    return _interval(observed, lower, upper, allowed, n, samples), "paired bootstrap (expanded percentiles)"


def _rarest(targets: Any) -> torch.Tensor | None:
    """Which samples are of the rarest class; ``None`` where targets are no labels, or where no class is at least twice as rare as they are on average."""
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point():
        return None
    labels, counts = targets.unique(return_counts=True)
    return targets == labels[counts.argmin()] if int(counts.min()) * len(labels) < RARE * len(targets) else None


def _one_more(index: torch.Tensor, rare: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """Whose outputs a model gives for the samples ``index``, if it loses about one of the rarest class: instead of its own those of a sample of another class."""
    if rare is None:
        return index
    places, others = rare[index].nonzero().flatten(), (~rare).nonzero().flatten()
    count = min(int(torch.poisson(torch.ones(()), generator=generator)), len(places))
    if not count:
        return index
    lost = index.clone()
    lost[places[torch.randperm(len(places), generator=generator)[:count]]] = others[torch.randint(len(others), (count,), generator=generator)]
    return lost


def _interval(observed: float, lower: float, upper: float, allowed: float, n: int, samples: Callable[[], int]) -> DropInterval:
    """``needed_samples`` also stays ``None`` where the observed drop is exactly the allowed one: no number of samples like these decides."""
    undecided = upper > allowed >= lower and abs(observed - allowed) > LEAST_GAP
    return DropInterval(observed=observed, lower_95=lower, upper_95=upper, allowed=allowed, samples=n, needed_samples=samples() if undecided else None)


def decide(interval: DropInterval, source: Source) -> Verdict:
    """``pass`` if the upper limit is within the allowance (never on samples that the original was trained on), ``fail`` if the lower one is beyond it.

    Example:
        >>> near = DropInterval(observed=0.002, lower_95=0.001, upper_95=0.004, allowed=0.01, samples=5000)
        >>> decide(near, "user"), decide(near, "from_train")
        ('pass', 'inconclusive')
    """
    if interval.lower_95 > interval.allowed:
        return "fail"
    if interval.upper_95 <= interval.allowed and source != "from_train":
        return "pass"
    return "inconclusive"


def fixed_sequence(intervals: Sequence[tuple[str, Callable[[], tuple[DropInterval, str]]]], source: Source) -> tuple[int, DropInterval, Certificate]:
    """Test finalists in their fixed order, each at 5 %, until the first that fails; the last that passed is delivered.

    The order was fixed before the holdout was opened, from the most conservative to the smallest, and a later finalist is tested only
    if all before it passed. A false pass therefore needs the first truly inadmissible finalist in that order to pass
    its own test, whose chance is 5 %: so is the chance of any false pass, without dividing the 5 % among them.
    ``intervals``: at most three ``(plan digest, function that measures and tests it)``. Returns the index of what is
    delivered (the first if none passed), its interval and the certificate.

    Raises:
        ValueError: no finalist, or more than three.

    References:
        Maurer, Hothorn and Lehmacher, "Multiple comparisons in drug clinical trials and preclinical
        assays: a-priori ordered hypotheses", 1995.
        Westfall and Krishen, "Optimally weighted, fixed sequence and gatekeeper multiple testing
        procedures", Journal of Statistical Planning and Inference 99, 2001.
    """
    if not 1 <= len(intervals) <= MOST_FINALISTS:
        raise ValueError(f"{len(intervals)} finalists; the sequence is of one to {MOST_FINALISTS}")
    steps: list[SequenceStep] = []
    delivered: _Tested | None = None
    for place, (plan, measure) in enumerate(intervals):
        interval, test = measure()
        passed = interval.upper_95 <= interval.allowed
        steps.append(SequenceStep(plan=plan, observed=interval.observed, upper_95=interval.upper_95, passed=passed))
        if passed or delivered is None:
            delivered = _Tested(place, interval, test)
        if not passed:
            break
    assert delivered is not None
    return delivered.place, delivered.interval, Certificate(source=source, test=delivered.test, sequence=tuple(steps))


@dataclass(frozen=True)
class _Tested:
    place: int
    interval: DropInterval
    test: str


def expected_half_width(discordance: float, samples: int) -> float:
    """What the upper limit on ``samples`` of the holdout will add to the observed drop, if the models differ on a share ``discordance`` of samples.

    The normal half-width and ``1 / samples``, by which the limits of ``drop_interval`` are wider; at least that of one
    differing sample. For scores other than 0 and 1, ``discordance`` is the mean square of the difference.

    Example:
        >>> exact = drop_interval(torch.ones(1000), torch.ones(1000).index_fill(0, torch.arange(20), 0), 0.5)[0]
        >>> abs(expected_half_width(0.02, 1000) / (exact.upper_95 - exact.observed) - 1) < 0.1
        True
    """
    n = max(samples, 1)
    return Z * math.sqrt(max(discordance, 1 / n) / n) + 1 / n


def chance(drop: float, discordance: float, seen: float, tested: int, allowed: float, width: float | None = None) -> float:
    """Probability that the test on ``tested`` samples passes, if ``drop`` was seen on ``seen`` others and the models differ on a share ``discordance``.

    Normal approximation: both drops scatter around the same true one. ``width``: of graded scores, what the test will add to the drop
    (``likely_half_width``); then ``discordance`` is the variance of the differences.

    Example:
        >>> round(chance(0.001, 0.05, 5000, 10_000, 0.01), 2), round(chance(0.006, 0.05, 5000, 10_000, 0.01), 2)
        (0.91, 0.52)
    """
    square = max(discordance, 1 / max(seen, 1)) if width is None else max(discordance, LEAST_GAP)
    spread = math.sqrt(square * (1 / max(seen, 1) + 1 / max(tested, 1)))
    added = expected_half_width(discordance, tested) if width is None else width
    return float(stats.norm.cdf((allowed - added - drop) / spread))


def best_sequence(prices: Sequence[float], chances: Sequence[float], nothing: float, most: int = MOST_FINALISTS) -> tuple[int, ...]:
    """The fixed sequence with the least expected logarithm of the price, so that ratios count, wherever they lie: first one that is as likely to pass as the likeliest, or nearly, then by falling price; what comes before the first failure is taken.

    A step between the first and the most daring one is worth its own risk, since the last one often fails. Their tests share the luck of the original's answers, so each is taken to pass
    where those that are less likely to do: a step that is likelier than the next costs nothing but its place among the ``most``. Where none passes, the price is ``nothing``, the original's:
    the digits' demo, where that was not counted, left out a first one that was sure, for a third whose chance was small, and ended without a verdict.

    Example:
        >>> best_sequence([1.0, 0.8, 0.5], [0.99, 0.9, 0.5], 2.0)
        (0, 1, 2)
        >>> best_sequence([1.0, 0.98, 0.5], [0.99, 0.9, 0.9], 2.0)
        (0, 2)
        >>> best_sequence([1.0, 0.9, 0.7, 0.6], [0.98, 0.97, 0.7, 0.5], 2.0)
        (1, 2, 3)
    """
    likeliest = max(range(len(prices)), key=lambda i: (chances[i], -prices[i]))

    def gain(steps: tuple[int, ...]) -> float:
        total, reached, before = 0.0, 1.0, max(nothing, *prices)
        for i in steps:
            reached = min(reached, chances[i])
            total += reached * math.log(before / prices[i])
            before = prices[i]
        return total

    sequences = []
    for first in [likeliest, *(i for i, c in enumerate(chances) if i != likeliest and c >= chances[likeliest] - AS_LIKELY and prices[i] < prices[likeliest])]:
        cheaper = sorted((i for i in range(len(prices)) if prices[i] < CHEAPER * prices[first]), key=lambda i: -prices[i])
        sequences += [(first, *steps) for n in range(most) for steps in itertools.combinations(cheaper, n)]
    return max(sequences, key=lambda steps: (round(gain(steps), 9), -len(steps)))


def shrunk(drop: float, discordance: float, samples: int, candidates: int) -> float:
    """The drop to expect of the best of ``candidates`` by their drops on ``samples``: ``drop + E[max of k normals] * standard error``.

    The smallest of k noisy drops is too small by about its standard error times the expected
    maximum of k standard normals. That holds for equally good candidates with independent errors, and is too
    much for others: it errs to the careful side.

    References:
        Blom, "Statistical Estimates and Transformed Beta-Variables", 1958 (expected order statistics).

    Example:
        >>> shrunk(0.004, 0.05, 5000, 1), round(shrunk(0.004, 0.05, 5000, 10), 4)
        (0.004, 0.0089)
    """
    if candidates < 2 or samples < 1:
        return drop
    error = math.sqrt(max(discordance, 1.0 / samples) / samples)
    return drop + error * float(stats.norm.ppf((candidates - 0.375) / (candidates + 0.25)))


@dataclass(frozen=True)
class Usual:
    """What models lose that differ as much from the original, before anything was seen of them: the ``drop``, and its standard ``error``."""

    drop: float
    error: float


def usual_drop(discordance: float, samples: int, likely: float | None = None, *, trained: bool = False) -> Usual:
    """Of scores of 0 and 1, of which the share ``discordance`` differs: from the drop that is ``likely`` by the original's probabilities on so many ``samples``, of which what was
    ``trained`` loses about half; where they are not known from that share.

    Example:
        >>> [(round(u.drop, 4), round(u.error, 4)) for u in (usual_drop(0.05, 5000), usual_drop(0.05, 5000, 0.016), usual_drop(0.05, 5000, 0.016, trained=True))]
        [(0.009, 0.004), (0.016, 0.0024), (0.008, 0.0024)]
    """
    least = 1 / max(samples, 1)
    if likely is None:
        differ = max(discordance, least)
        return Usual(LOST * differ, differ / math.sqrt(KNOWN))
    return Usual((TRAINED if trained else 1.0) * likely, max(DOUBT * likely, least))


def expected_drop(drop: float, discordance: float, samples: int, candidates: int = 1, usual: Usual | None = None) -> tuple[float, float]:
    """The drop to expect on other samples of the best of ``candidates``, which was seen on these, and the number of samples that say as much; scores of 0 and 1.

    Where the original was unlucky on these samples, all that answers differently seems better than it is. So what was seen is one thing that is known, what is
    ``usual`` of such models (by default of those that differ as often) another: a normal likelihood, and a normal prior. Few samples decide little, many nearly all;
    what luck does not explain (``BEYOND`` standard errors) is no luck, and the less is what is usual believed.

    References:
        Efron and Morris, "Data Analysis Using Stein's Estimator and its Generalizations", 1975.

    Example:
        >>> [round(expected_drop(0.0, 0.05, n)[0], 4) for n in (200, 5000, 500_000)]
        [0.0085, 0.0035, 0.0]
    """
    seen, usual = shrunk(drop, discordance, samples, candidates), usual or usual_drop(discordance, samples)
    differ = max(discordance, 1 / max(samples, 1))
    luck = math.sqrt(differ / max(samples, 1))
    known = differ / max(usual.error, abs(seen - usual.drop) - BEYOND * luck) ** 2
    return (samples * seen + known * usual.drop) / (samples + known), samples + known
