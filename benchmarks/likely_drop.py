"""What a candidate will lose on other samples, by three estimates from the search samples, beside what it loses on the holdout.

    python benchmarks/likely_drop.py path/to/resnet20_cifar10.py build/resnet20 [another build]

Every candidate of the runs is built again, untrained. ``seen``: its drop on the search samples. ``decision 88``: with the share of scores that differ. ``likely``: by the original's own probabilities,
calibrated by one temperature on the search samples: of each sample what they give to the original's answer less what they give to the candidate's. No label says whether that answer was right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from slimline.core.registry import find
from slimline.core.trial import Trial
from slimline.errors import SlimlineError
from slimline.job.context import STATE
from slimline.measure.certify import expected_drop
from slimline.model.recover import evaluate
from slimline.model.sites import find_sites
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source
from slimline.store.journal import FILE


def temperature(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """By which ``scores`` are divided so that the labels are likeliest (Guo et al., ICML 2017)."""
    tried = np.geomspace(0.5, 4.0, 200)
    return float(tried[int(np.argmin([float(functional.cross_entropy(scores / t, labels)) for t in tried]))])


def right(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (scores.argmax(1) == labels).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("builds", type=Path, nargs="+")
    given = parser.parse_args()
    source, target = open_source(given.task), find("targets", "onnxruntime")()
    train, search, holdout = (source.data(split) for split in ("train", "search", "holdout"))
    assert train is not None and search is not None and holdout is not None
    calibration = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:256]].without_targets()
    model = source.model().eval()
    workshop = Workshop(model, calibration[:2], calibration, tuple(find_sites(model, source.example())[0]), target)
    (before, labels), (before_there, labels_there) = ((evaluate(model, s.without_targets()).detach(), s.targets) for s in (search, holdout))
    probabilities = functional.softmax(before / temperature(before, labels), 1)
    rows = []
    for build in given.builds:
        events = [json.loads(line[9:]) for line in (build / STATE / FILE).read_text().splitlines()]
        for trial in (Trial.model_validate(e["data"]) for e in events if e["kind"] == "trial"):
            try:
                artifact = workshop.lower(workshop.build(trial.plan))
            except SlimlineError as error:
                print(f"{trial.plan.digest[:8]}: {error.message}")
                continue
            after, after_there = (target.run(artifact, s.without_targets(), threads=2)[0] for s in (search, holdout))
            change = right(before, labels) - right(after, labels)
            rest = probabilities.gather(1, torch.stack([before.argmax(1), after.argmax(1)], 1))
            row = (
                float(change.mean()),
                expected_drop(float(change.mean()), float(change.abs().mean()), len(search))[0],
                float((rest[:, 0] - rest[:, 1]).mean()),
                float((right(before_there, labels_there) - right(after_there, labels_there)).mean()),
            )
            rows.append(row)
            print(f"{trial.plan.digest[:8]}: seen {row[0]:.4f}, decision 88 {row[1]:.4f}, likely {row[2]:.4f}; on the holdout {row[3]:.4f}", flush=True)
    found = np.array(rows)
    for place, name in enumerate(("seen", "decision 88", "likely")):
        off = found[:, place] - found[:, 3]
        print(f"{name:12} root of the mean squared error {np.sqrt(np.mean(off**2)):.4f}, mean error {off.mean():+.4f}")


if __name__ == "__main__":
    main()
