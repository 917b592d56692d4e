"""The archive of an int8 model without any training, against `zstd -19` of the same file.

    python benchmarks/archive.py path/to/resnet20_cifar10.py

Lossless: every weight in int8 as `static_int8` (activations too) or `weight_only` stores it. Rate-aware: the same with `rate`, raised layer by layer (what
saves most bytes for the loss that it makes goes first) while at least 99.5 % of the outputs on the search split keep the original's top-1, or as many as
plain int8 keeps, if that is fewer. What is printed is of the holdout split, by the decoded archive run in the runtime. Float, 4-bit and 2-bit files are packed too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Mapping
from pathlib import Path

import zstandard

from slimline.archive.container import pack, unpack
from slimline.core.contracts import Artifact
from slimline.core.plan import Decision, Fingerprint, Method, Plan
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.measure.quality import default
from slimline.measure.quality import evaluate as score
from slimline.methods.static_int8 import RATES, StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.recover import evaluate
from slimline.model.sites import find_sites
from slimline.search.sensitivity import Sensitivity
from slimline.search.space import Option
from slimline.search.workshop import Workshop
from slimline.sources.task_file import TaskFile

FIDELITY = 0.995


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--methods", default="static_int8,weight_only")
    arguments = parser.parse_args()
    task = TaskFile.load(str(arguments.task))
    model, train, search, holdout = task.model(), task.data("train"), task.data("search"), task.data("holdout")
    assert train is not None
    assert search is not None
    assert holdout is not None
    target = find("targets", "onnxruntime")()
    sites, _ = find_sites(model, task.example())
    workshop = Workshop(model, task.example(), train[:512], sites, target)
    weights = [s for s in sites if s.kind == "weight"]
    original = {"search": evaluate(model, search), "holdout": evaluate(model, holdout)}

    def built(chosen: Mapping[str, Method | None]) -> Artifact:
        decisions = tuple(Decision(site=s, method=m) for s, m in chosen.items() if m is not None)
        return workshop.lower(workshop.build(Plan(model=Fingerprint(architecture="", weights=""), decisions=decisions)))

    def fidelity(artifact: Artifact, samples: Samples, name: str) -> float:
        return float((target.run(artifact, samples)[0].argmax(1) == original[name].argmax(1)).float().mean())

    def row(label: str, artifact: Artifact) -> int:
        start = time.perf_counter()
        packed = pack(artifact.payload, ".onnx")
        middle = time.perf_counter()
        payload, _ = unpack(packed.data)
        seconds = (middle - start, time.perf_counter() - middle)
        assert payload == artifact.payload
        zstd = len(zstandard.ZstdCompressor(level=19).compress(payload))
        decoded = Artifact(artifact.target, artifact.suffix, payload, artifact.inputs, artifact.outputs)
        outputs = target.run(decoded, holdout)[0]
        metric = task.metric if task.has_metric else default(outputs, holdout.targets)[1]
        quality, same = score(metric, outputs, holdout.targets)[0], fidelity(decoded, holdout, "holdout")
        parts = ", ".join(f"{k} {round(v):,}" for k, v in packed.sections.items())
        print(
            f"{label:24} file {len(payload):>9,}  zstd -19 {zstd:>9,}  archive {len(packed.data):>9,} ({len(packed.data) / zstd - 1:+.1%})  top-1 {quality:.4f}  fidelity {same:.4f}"
            f"  {packed.codec}: {parts}, header {packed.header_bytes}; {packed.above_entropy or 0:.2%} above its entropy; {seconds[0]:.2f} s, {seconds[1]:.2f} s",
            flush=True,
        )
        return len(packed.data)

    def everywhere(method: Method) -> dict[str, Method | None]:
        chosen: dict[str, Method | None] = {}
        for site in weights:
            try:
                workshop.numeric_edits(workshop.program, site.id, method, workshop.statistics)
                chosen[site.id] = method
            except SlimlineError:
                chosen[site.id] = None
        return chosen

    row("float32", built({}))
    for bits in (4, 2):
        row(f"int{bits}", built(everywhere(StaticInt8(bits=bits, rounding="second_order"))))
    sensitivity = Sensitivity(workshop, train[:512])
    for kind in (k for k in (StaticInt8, WeightOnly) if k.name in arguments.methods.split(",")):
        plain = everywhere(kind())
        exact = built(plain)
        lossless = row(kind.name, exact)
        for rate in RATES:
            row(f"{kind.name}, rate {rate:g}", built(everywhere(kind(rounding="second_order", rate=rate))))
        steps = []
        for site in (s for s in weights if plain[s.id] is not None):
            offers = [kind(), *(kind(rounding="second_order", rate=r) for r in RATES)]
            found = [o for o in sensitivity.numerics(site, offers) if isinstance(o, Option)]
            for milder, coarser in itertools.pairwise(found):
                price = max(coarser.loss - milder.loss, 1e-9) / (max(milder.coded - coarser.coded, 1e-6) * math.prod(site.shape))
                steps.append((price, site.id, coarser.decisions[0].method))
        ladder = sorted(steps, key=lambda step: step[0])

        def climbed(count: int, plain: Mapping[str, Method | None] = plain, ladder: list[tuple[float, str, Method]] = ladder) -> Artifact:
            chosen = dict(plain)
            for _, site, method in ladder[:count]:
                if getattr(method, "rate", 0.0) > getattr(chosen[site], "rate", 0.0):
                    chosen[site] = method
            return built(chosen)

        floor = min(FIDELITY, fidelity(exact, search, "search"))
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fidelity(climbed(middle), search, "search") >= floor else (low, middle - 1)
        mixed = row(f"{kind.name}, by layer", climbed(low))
        print(f"{kind.name}: rate-aware at {floor:.2%} fidelity on the search split: {1 - mixed / lossless:.1%} below the lossless archive", flush=True)


if __name__ == "__main__":
    main()
