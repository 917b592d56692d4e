"""What a candidate will lose on other samples, by three estimates from the search samples, beside what it loses on the holdout.

    python benchmarks/likely_drop.py path/to/resnet20_cifar10.py build/resnet20 [another build]

Every candidate of the runs is built again, untrained, and what the race made of it in float is loaded from the run's cache. ``seen``: the drop on the search samples. ``by count``: with what models usually
lose that differ as often (``measure.certify.LOST``). ``likely``: by the original's own calibrated probabilities (``numerics.changes.likely_drop``). ``expected``: of these and what was seen, as the search expects it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from slimline.core.registry import find
from slimline.core.trial import Trial
from slimline.errors import SlimlineError
from slimline.job.context import STATE
from slimline.measure.certify import expected_drop, usual_drop
from slimline.model.recover import evaluate
from slimline.model.sites import find_sites
from slimline.numerics.changes import likely_drop, temperature
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source
from slimline.store.cache import Cache, key
from slimline.store.journal import FILE

ESTIMATES = "seen", "by count", "likely", "expected"


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
    warmth = temperature(before, labels)
    rows: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}

    def tell(name: str, after: torch.Tensor, after_there: torch.Tensor, *, trained: bool) -> None:
        change = right(before, labels) - right(after, labels)
        seen, differ, likely = float(change.mean()), float(change.abs().mean()), likely_drop(after, before, warmth)
        usual = usual_drop(differ, len(search), likely, trained=trained)
        found = (seen, expected_drop(seen, differ, len(search))[0], likely, expected_drop(seen, differ, len(search), usual=usual)[0])
        lost = float((right(before_there, labels_there) - right(after_there, labels_there)).mean())
        rows[trained].append((*found, lost))
        print(
            f"{name:24}",
            ", ".join(f"{estimate} {value:.4f}" for estimate, value in zip(ESTIMATES, found, strict=True)),
            f"| on the holdout {lost:.4f}",
            flush=True,
        )

    for build in given.builds:
        events = [json.loads(line[9:]) for line in (build / STATE / FILE).read_text().splitlines()]
        cache = Cache(build / STATE / "cache", own=False)
        planned = next((e["data"]["steps"] for e in reversed(events) if e["kind"] == "recovery"), 0)
        for trial in (Trial.model_validate(e["data"]) for e in events if e["kind"] == "trial"):
            name = trial.plan.digest[:8]
            try:
                artifact = workshop.lower(workshop.build(trial.plan))
            except SlimlineError as error:
                print(f"{name}: {error.message}")
                continue
            tell(f"{name}, untrained", *(target.run(artifact, s.without_targets(), threads=2)[0] for s in (search, holdout)), trained=False)
            for rung in (e["data"] for e in events if e["kind"] == "rung" and e["data"]["plan"] == trial.plan.digest and not e["data"]["with_quantizers"]):
                stored = cache.get(key("recovered", trial.plan.digest, rung["steps"], planned, False))
                if stored is not None:
                    module: nn.Module = workshop.structure(trial.plan)
                    module.load_state_dict(stored[0])
                    tell(f"{name}, {rung['steps']} steps", *(evaluate(module.eval(), s.without_targets()).detach() for s in (search, holdout)), trained=True)
    for trained, some in rows.items():
        found = np.array(some or np.zeros((0, len(ESTIMATES) + 1)))
        for place, estimate in enumerate(ESTIMATES if some else ()):
            off = found[:, place] - found[:, -1]
            print(
                f"{'trained' if trained else 'untrained'}, {estimate:9} root of the mean squared error {np.sqrt(np.mean(off**2)):.4f}, mean error {off.mean():+.4f}"
            )


if __name__ == "__main__":
    main()
