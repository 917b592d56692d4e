"""What each layer's integer kernel takes with some of its outputs, and with some of its inputs, as the search finds it before it chooses widths.

    python benchmarks/layer_times.py path/to/resnet20_cifar10.py

Whole models are timed beside the float one (``search/timing.py``): everything in int8, then one half of the coupled channels after the other left with 3/4,
1/2 and 1/4 of them. Prints for each layer its shape, its milliseconds in float and in int8, and the factors by which the latter change. The runtime's own profile tells
the layers apart; batch 1, one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from slimline.core.plan import Fingerprint, Method, Plan
from slimline.core.registry import find
from slimline.job.option_database import keep_option
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.static_int8 import StaticInt8
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.timing import FRACTIONS, measure_timing
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source

MODELS = 3 + 2 * len(FRACTIONS)  # beside the float one: integer, dynamic, mixed, and the narrower ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--samples", type=int, default=32, help="for calibration")
    given = parser.parse_args()
    source, target = open_source(str(given.task)), find("targets", given.target)()
    search = source.data("search")
    assert search is not None
    model, samples = source.model().eval(), search[: given.samples].without_targets()
    sites = tuple(s for s in find_sites(model, source.example())[0] if s.kind in ("weight", "channels"))
    workshop = Workshop(model, samples[:2], samples, sites, target)
    sensitivity = Sensitivity(workshop, samples)
    offered: dict[str, list[Method]] = {"weight": [StaticInt8()], "channels": [ChannelPrune(keep=f) for f in FRACTIONS]}
    places = [sensitivity.place(s, offered[s.kind], keep_option)[0] for s in sites]
    plan = Plan(model=Fingerprint(architecture="", weights=""))
    baseline = workshop.lower(workshop.build(plan))
    timing, _ = measure_timing(workshop, baseline, places, plan, batch=1, threads=1, note=print, most=MODELS)
    print(f"{'layer':32} {'shape':>16} {'float ms':>9} {'int8 ms':>9}  with fewer outputs | with fewer inputs")
    for name, use in workshop.program.weights.items():
        sides = timing.narrow.get("integer", {}).get(name, ((), ()))
        ladders = " | ".join(", ".join(f"{share:.2f}: {factor:.2f}x" for share, factor in side) or "-" for side in sides)
        times = (timing.full.get(e, {}).get(name, 0.0) for e in ("float", "integer"))
        print(f"{name:32} {'x'.join(map(str, use.shape)):>16} " + " ".join(f"{t:9.4f}" for t in times) + f"  {ladders}")


if __name__ == "__main__":
    main()
