"""What finalists lost on the holdout, as a share of the scores in which they differ from the original, and of what the original's probabilities make likely.

    python benchmarks/lost_elsewhere.py build/resnet20 build/lenet5 ...

Reads the certificates and journals of finished builds: what ``measure.certify.usual_drop`` takes as known before a finalist is seen (``LOST``, and ``KNOWN`` from the scatter; ``TRAINED``) comes from this table.
The share of scores that differ is worked out from the width of each interval, so of scores of 0 and 1 alone.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from slimline.core.trial import Trial
from slimline.job.context import STATE
from slimline.measure.certify import KNOWN, LOST, TRAINED, Z
from slimline.store.journal import FILE

LEAST = 20  # scores that differ, below which a share of them says nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", type=Path)
    shares, errors, of_likely = [], [], []
    print(f"{'lost':>8} {'differ':>8} {'lost of these':>14} {'+-':>6} {'likely':>8} {'lost of it':>11}")
    for build in parser.parse_args().builds:
        report = json.loads((build / "report.json").read_text())
        if report["certificate"] is None or "exact" not in report["certificate"]["test"]:
            print(f"{build}: no certificate of scores of 0 and 1")
            continue
        samples = report["drop"]["samples"]
        events = [json.loads(line[9:]) for line in (build / STATE / FILE).read_text().splitlines()]
        finished = {f.plan.digest: f for f in (Trial.model_validate(e["data"]) for e in events if e["kind"] == "finalist")}
        for step in report["certificate"]["sequence"]:
            width = step["upper_95"] - step["observed"] - 1 / samples
            differ = samples * (max(width, 0.0) / Z) ** 2
            if differ * samples < LEAST:
                continue
            shares.append(step["observed"] / differ)
            errors.append(1 / math.sqrt(differ * samples))
            finalist = finished.get(step["plan"])
            likely = finalist.fidelity.likely_drop if finalist is not None and finalist.fidelity is not None else None
            told = f"{likely:8.4f} {step['observed'] / likely:11.3f}" if likely else " " * 20
            if likely and finalist is not None and "recovery" in finalist.origin:
                of_likely.append((likely, step["observed"], math.sqrt(differ / samples)))
            print(f"{step['observed']:8.4f} {differ:8.4f} {shares[-1]:14.3f} {errors[-1]:6.3f} {told}  {build} {step['plan'][:8]}")
    if len(shares) > 1:
        weights = 1 / np.square(errors)
        mean = float(np.average(shares, weights=weights))
        scatter = max(0.0, float(np.average(np.square(np.array(shares) - mean), weights=weights) - np.average(np.square(errors), weights=weights)))
        print(f"{len(shares)} finalists: {mean:.3f}, scatter beyond that of the samples {math.sqrt(scatter):.3f} (assumed: {LOST}, {KNOWN**-0.5:.3f})")
    if of_likely:
        likely_drops, lost, error = map(np.array, zip(*of_likely, strict=True))
        share = float(np.sum(lost * likely_drops / error**2) / np.sum(likely_drops**2 / error**2))
        print(f"{len(lost)} that were trained lost {share:.3f} of what is likely (assumed: {TRAINED})")


if __name__ == "__main__":
    main()
