"""How many answers change, and what that loses: where there are too few samples to count on."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from slimline.numerics.scores import are_probabilities, logits

LEADING = 10  # classes of a sample, among which the top one is looked for
OTHERS = 200  # samples, as whose scores each one's change
USUAL = 1 / 3  # of the answers that change, how many more are lost than won, as long as nothing else is known: a guess
KNOWN = 50  # changed answers that say as much as ``USUAL``
SURE = 2.0  # standard errors of a drop, beyond which chance does not explain it
TEMPERATURES = 0.1, 10.0  # among which one is looked for
FEW = 0.3  # a candidate that changes more answers says nothing about those that change few


def expected_changes(scores: torch.Tensor, reference: torch.Tensor) -> float:
    """The share of samples whose top class is expected to change, of class scores ``[N, C]`` and the original's ``[N, C]``, or of probabilities.

    Each sample's leading scores change as those of every other sample (of ``OTHERS``) did, rank by rank: of N samples that makes far more than N answers.
    Counting the changes themselves says less: of 125 images EfficientNet-Lite0 changed 3, 3, 6 and 4 in four settings of 8 bits, and of 250 others 11, 12, 13 and 5; this
    says 3.8, 3.9, 4.0 and 2.5 %.

    Example:
        >>> reference = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
        >>> expected_changes(reference + torch.tensor([[-2.0, 0.0], [0.0, 0.0]]), reference), expected_changes(reference, reference)
        (0.25, 0.0)
    """
    given = are_probabilities(reference)
    a, b = (logits(t.detach().float(), given) for t in (scores, reference))
    best, places = b.topk(min(LEADING, b.shape[1]), 1)
    changes = (a.gather(1, places) - best)[:: max(1, len(best) // OTHERS)]
    return sum(float(((best + change).argmax(1) != 0).double().mean()) for change in changes) / len(changes)


def temperature(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """By which class scores ``[N, C]`` (or the logarithms of probabilities) are divided so that the ``labels`` ``[N]`` are likeliest.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Example:
        >>> round(temperature(torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])), 2)
        3.64
    """
    given = logits(scores.detach().float(), are_probabilities(scores))
    lowest, highest = map(math.log, TEMPERATURES)
    found = minimize_scalar(lambda t: float(functional.cross_entropy(given / math.exp(t), labels)), bounds=(lowest, highest), method="bounded")
    return math.exp(float(found.x))


def likely_drop(scores: torch.Tensor, reference: torch.Tensor, temperature: float) -> float:
    """What is lost where answers changed, of class scores ``[N, C]`` and the original's, if the original's calibrated probabilities are right: of each sample what they give to its answer less what they give to the changed one.

    No label says whether that answer was right here, so that the luck of these samples is not in it. Of 20 untrained candidates of ResNet-20 it was off by 0.0017 (root of the mean square)
    from what they lost on the holdout, what was seen by 0.0052 (``benchmarks/likely_drop.py``). What was trained gives better answers than the original believes and loses about half of it.

    Example:
        >>> reference = torch.tensor([[0.7, 0.3], [0.9, 0.1]]).log()
        >>> round(likely_drop(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), reference, 1.0), 2)
        0.2
    """
    probabilities = functional.softmax(logits(reference.detach().float(), are_probabilities(reference)) / temperature, 1)
    answers = torch.stack([reference.argmax(1), scores.argmax(1)], 1)
    given = probabilities.gather(1, answers).double()
    return float((given[:, 0] - given[:, 1]).mean())


def lost_per_change(seen: Iterable[tuple[float, float]], samples: int) -> float:
    """How much of quality is lost with each changed answer, from candidates' ``(drop, share of answers that changed)`` on so many samples.

    Candidates change much the same answers, so that all of them together say no more than the one that changes the most.

    Example:
        >>> seen = [(0.06, 0.22), (0.008, 0.16), (0.04, 0.08), (0.7, 0.9)]
        >>> [round(lost_per_change(*given), 2) for given in (([], 125), (seen, 125), (seen, 5000))]
        [0.33, 0.3, 0.24]
    """
    few = [(drop, changed) for drop, changed in seen if 0 < changed <= FEW]
    if not few:
        return USUAL
    dropped, changed, most = sum(drop for drop, _ in few), sum(changed for _, changed in few), max(changed for _, changed in few)
    prior = KNOWN / max(samples, 1)
    return (most * max(dropped, 0.0) / changed + prior * USUAL) / (most + prior)


def believed(drop: float, changed: float, per_change: float, samples: int, allowed: float) -> float:
    """A drop as it was seen on so many samples, or, where chance alone moves it by more than what is allowed, what answers of which the share ``changed`` is expected to change usually lose.

    Within two standard errors of what was seen: a drop that chance does not explain is one. Of 125 images EfficientNet-Lite0 answered three more rightly with a seventh of
    its answers changed; what it seemed to gain is noise.

    Example:
        >>> believed(-0.024, 0.15, 0.25, samples=125, allowed=0.01), believed(-0.002, 0.15, 0.25, samples=5000, allowed=0.01)
        (0.0375, -0.002)
        >>> round(believed(0.04, 0.025, 0.25, samples=125, allowed=0.01), 3)
        0.012
    """
    chance = math.sqrt(changed / max(samples, 1))
    return drop if chance <= allowed else min(max(per_change * changed, drop - SURE * chance), drop + SURE * chance)
