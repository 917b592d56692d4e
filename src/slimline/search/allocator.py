"""One option per place, at the least cost, within limits: exactly."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import optimize, sparse

GAP = 1e-3  # relative: far below what the estimates are worth
SECONDS = 5.0

# What each option adds, by place, or of those places where it adds anything; and the most of it.
Limit = tuple[Sequence[np.ndarray] | Mapping[int, np.ndarray], float]


def allocate(objective: Sequence[np.ndarray], limits: Sequence[Limit]) -> tuple[int, ...] | None:
    """The multiple-choice knapsack problem, solved by HiGHS's branch and cut.

    ``objective[i][j]``: cost of option j at place i. Each of ``limits``: the same for a
    constrained quantity (by place, where only a few count), with its limit on the sum. ``None`` if nothing meets the limits.

    References:
        Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11.

    Example:
        >>> allocate([np.array([3.0, 1.0]), np.array([4.0, 0.0])], [([np.array([0.0, 1.0]), np.array([0.0, 1.0])], 1.0)])
        (0, 1)
        >>> allocate([np.array([3.0, 1.0]), np.array([4.0, 0.0])], [({1: np.array([0.0, 1.0])}, 0.0)])
        (1, 0)
    """
    sizes = [len(row) for row in objective]
    starts = _starts(sizes)
    total = int(starts[-1])
    constraints = [optimize.LinearConstraint(_one_each(sizes), 1, 1)]
    if limits:
        constraints.append(optimize.LinearConstraint(_sums(limits, sizes), -np.inf, np.array([limit for _, limit in limits])))
    c = np.concatenate(list(objective))
    scale = np.abs(c).max() or 1.0
    with _no_chatter():
        found = optimize.milp(
            c / scale, constraints=constraints, integrality=np.ones(total), bounds=optimize.Bounds(0, 1), options={"mip_rel_gap": GAP, "time_limit": SECONDS}
        )
    if found.x is None:
        return None
    return tuple(int(np.argmax(found.x[a:b])) for a, b in itertools.pairwise(starts))


def multipliers(objective: Sequence[np.ndarray], limits: Sequence[Limit]) -> tuple[float, ...] | None:
    """What one more unit of each limit would take off the objective: the dual values of the problem with shares of options allowed.

    0 for a limit that does not bind. ``None`` if nothing meets the limits.

    References:
        Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, section 11.2 (the linear relaxation).

    Example:
        One unit of the first quantity is worth 4: the second place gives most for it.

        >>> multipliers([np.array([3.0, 1.0]), np.array([4.0, 0.0])], [([np.array([0.0, 1.0]), np.array([0.0, 1.0])], 0.5)])
        (4.0,)
    """
    sizes = [len(row) for row in objective]
    rows = _sums(limits, sizes)
    units = abs(rows).max(axis=1).toarray().ravel()
    units[units == 0] = 1.0
    c = np.concatenate(list(objective))
    scale = np.abs(c).max() or 1.0
    with _no_chatter():
        found = optimize.linprog(
            c / scale,
            A_ub=sparse.diags(1 / units) @ rows,
            b_ub=np.array([limit for _, limit in limits]) / units,
            A_eq=_one_each(sizes),
            b_eq=np.ones(len(sizes)),
            bounds=(0, 1),
            method="highs",
        )
    if found.x is None:
        return None
    return tuple(float(max(0.0, -m) * scale / u) for m, u in zip(found.ineqlin.marginals, units, strict=True))


def _starts(sizes: Sequence[int]) -> np.ndarray:
    """Where each place's options begin, and the end."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _sums(limits: Sequence[Limit], sizes: Sequence[int]) -> sparse.csr_matrix:
    """A row for each limit. Exclusions are about two places each: written out over all places they took most of a deep network's solving."""
    starts = _starts(sizes)
    values, columns, counts = [], [], []
    for given, _ in limits:
        parts = given if isinstance(given, Mapping) else dict(enumerate(given))
        values += list(parts.values())
        columns += [np.arange(starts[i], starts[i + 1]) for i in parts]
        counts.append(sum(map(len, parts.values())))
    return sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), _starts(counts)), shape=(len(limits), int(starts[-1])))


def _one_each(sizes: Sequence[int]) -> sparse.csr_matrix:
    """Rows that sum the options of each place."""
    total = sum(sizes)
    return sparse.csr_matrix((np.ones(total), (np.repeat(np.arange(len(sizes)), sizes), np.arange(total))), shape=(len(sizes), total))


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """HiGHS 1.12 writes lines of its own debugging to the process's standard output, where a report may be on its way."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
