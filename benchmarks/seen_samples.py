"""What a layer loses in few bits on samples that its rounding was fitted to, and on others.

    python benchmarks/seen_samples.py path/to/efficientnet_lite0.py --bits 4 --least 2

Half of the search samples calibrate; each layer alone is rounded by the second moments of its inputs on them, and the outputs' divergence is measured on the first of them, on those
that ``Workshop.unrounded`` keeps out of the moments, where the option database measures it, and on the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from slimline.core.heap import keep_heap
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Option
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--method", default="static_int8")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32, help="that losses are measured on; of the others twice as many")
    parser.add_argument(
        "--least", type=float, default=0.0, help="show only layers that lose at least so many times as much on others as on those that were seen"
    )
    given = parser.parse_args()
    keep_heap()
    source, target, method = open_source(str(given.task)), find("targets", given.target)(), find("methods", given.method)()
    search = source.data("search")
    assert search is not None
    search = search.without_targets()
    calibration, others = search[torch.arange(0, len(search), 2)], search[torch.arange(1, len(search), 2)][: 2 * given.samples]
    model = source.model().eval()
    sites = find_sites(model, source.example())[0]
    workshop = Workshop(model, calibration[:2], calibration, sites, target, moments=False)
    where: dict[str, Samples | None] = {
        "seen": calibration[: given.samples],
        "kept out": None if workshop.unrounded is None else workshop.unrounded[: given.samples],
        "others": others,
    }
    measured = {name: Sensitivity(workshop, samples) for name, samples in where.items() if samples is not None}
    print(f"{'nats':34} {'weight':>22} " + " ".join(f"{name:>9}" for name in measured) + "  others / seen")
    totals = dict.fromkeys(measured, 0.0)
    for site in (s for s in sites if s.kind == "weight"):
        options = [o for o in method.candidates(site) if getattr(o, "bits", 0) == given.bits and getattr(o, "rounding", "") == "second_order"][:1]
        losses = {name: [o.loss for o in m.numerics(site, options) if isinstance(o, Option)] for name, m in measured.items()}
        if not all(losses.values()):
            continue
        for name, (loss,) in losses.items():
            totals[name] += loss
        ratio = losses["others"][0] / max(losses["seen"][0], 1e-9)
        if ratio >= given.least:
            shape = " x ".join(map(str, site.shape))
            print(f"{site.id:34} {shape:>22} " + " ".join(f"{loss:9.6f}" for (loss,) in losses.values()) + f"  {ratio:.1f}", flush=True)
    print(f"{'all layers, each alone':57} " + " ".join(f"{total:9.6f}" for total in totals.values()))


if __name__ == "__main__":
    main()
