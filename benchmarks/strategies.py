"""allocate against evolve: the same space, the same number of seconds, several seeds.

    python benchmarks/strategies.py path/to/resnet20_cifar10.py --seconds 60 --seeds 3

Every proposed plan is built, lowered and measured (bytes, milliseconds, divergence from the original before
recovery, and the drop on the search samples). Prints the hypervolume of (size, latency, drop) against the baseline
and five points of drop, and the time at which each reached the other's final hypervolume.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from slimline.core.budget import Budget
from slimline.core.plan import Recovery
from slimline.core.progress import Silent
from slimline.core.registry import find
from slimline.core.request import Request
from slimline.core.trial import Trial
from slimline.job.context import open_job
from slimline.job.prepare import prepare
from slimline.job.search import loss_samples, original_answers, try_plan
from slimline.sources.task_file import TaskFile

WORST_DROP = 0.05


def hypervolume(points: np.ndarray) -> float:
    """Share of the unit box that is dominated by points in [0, 1]^3 (smaller is better), by slices along the last axis."""
    points = points[(points < 1).all(1)]
    if not len(points):
        return 0.0
    levels = np.unique(np.append(points[:, 2], 1.0))
    volume = 0.0
    for low, high in itertools.pairwise(levels):
        plane = points[points[:, 2] <= low][:, :2]
        plane = plane[np.argsort(plane[:, 0])]
        area, bound = 0.0, 1.0
        for x, y in plane:
            if y < bound:
                area += (1 - x) * (bound - y)
                bound = y
        volume += area * (high - low)
    return float(volume)


def corner(trial: Trial, base_size: float, base_ms: float, base_quality: float) -> tuple[float, float, float] | None:
    m = trial.measurement
    if m is None or m.quality is None:
        return None
    return m.size_bytes / base_size, m.latency_ms.median / base_ms, max(base_quality - m.quality, 0.0) / WORST_DROP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/strategies"))
    given = parser.parse_args()
    source = TaskFile.load(str(given.task))
    job = open_job(source, Request(out=given.out, force=True, seconds=900, model_name=source.name), Silent())
    found = prepare(job)
    base = found.baseline_measurement
    assert base.quality is not None
    samples = loss_samples(job, found)
    reference = original_answers(job, found, samples)
    results: dict[str, list[list[tuple[float, float]]]] = {}
    for seed in range(given.seeds):
        for name in ("allocate", "evolve"):
            space = replace(found.space, seed=seed, recovery=Recovery())  # nothing is trained here, and neither is to count on it
            strategy = find("strategies", name)(1000 if name == "evolve" else 24)
            trials: list[Trial] = []
            curve: list[tuple[float, float]] = []
            corners: list[tuple[float, float, float]] = []
            start = time.monotonic()
            while time.monotonic() - start < given.seconds:
                plan = strategy.propose(space, Budget(), trials)
                if plan is None:
                    break
                trial = try_plan(job, found, plan, name, samples, reference)
                trials.append(trial)
                place = corner(trial, base.size_bytes, base.latency_ms.median, base.quality)
                if place is not None:
                    corners.append(place)
                curve.append((time.monotonic() - start, hypervolume(np.array(corners)) if corners else 0.0))
            results.setdefault(name, []).append(curve)
            print(f"seed {seed} {name:9} {len(trials):3d} trials  hypervolume {curve[-1][1]:.4f} after {curve[-1][0]:.0f} s", flush=True)
    for seed in range(given.seeds):
        a, e = results["allocate"][seed], results["evolve"][seed]
        winner, loser, name = (a, e, "allocate") if a[-1][1] >= e[-1][1] else (e, a, "evolve")
        reached = next((t for t, v in winner if v >= loser[-1][1]), float("nan"))
        print(f"seed {seed}: {name} wins, and had the other's final hypervolume after {reached:.1f} s (the other took {loser[-1][0]:.0f} s)")


if __name__ == "__main__":
    main()
