"""Whether losses of dropped blocks add up: each alone, every two together, and what the search counts.

    python benchmarks/neighbours.py path/to/resnet20_cifar10.py

Drops one block, two, and (``--triples``) three that follow each other, repairs the model in closed form as every candidate is, and measures its divergence on samples that
repaired nothing. Prints what they lose together, the sum of what each loses alone, and that sum with what the search adds for neighbours (blocks of which one
reads what the other gives).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from slimline.core.heap import keep_heap
from slimline.core.plan import Decision
from slimline.core.registry import find
from slimline.core.site import Site
from slimline.methods.block_drop import BlockDrop
from slimline.model.recover import evaluate
from slimline.model.sites import find_sites
from slimline.numerics.divergence import mean_divergence
from slimline.search.sensitivity import neighbours
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--samples", type=int, default=1024, help="that repair, and that losses are measured on")
    parser.add_argument("--triples", action="store_true")
    given = parser.parse_args()
    keep_heap()
    source, target = open_source(str(given.task)), find("targets", given.target)()
    search = source.data("search")
    repairing = source.data("train") or search
    assert search is not None and repairing is not None
    order = torch.randperm(len(repairing), generator=torch.Generator().manual_seed(0))[: given.samples]
    model, samples, others = source.model().eval(), repairing[order].without_targets(), search[: given.samples].without_targets()
    blocks = [s for s in find_sites(model, source.example())[0] if s.kind == "block"]
    workshop = Workshop(model, samples[:2], samples, tuple(blocks), target)
    reference = evaluate(model, others)

    def lost(which: tuple[int, ...]) -> float:
        module = workshop.structure(workshop.plan(tuple(Decision(site=blocks[i].id, method=BlockDrop()) for i in which)))
        return float(mean_divergence((evaluate(module, others),), (reference,), classes=True))

    alone = {i: lost((i,)) for i in range(len(blocks))}
    beyond: dict[tuple[int, int], float] = {}
    beside = neighbours(workshop.program, blocks)
    print(f"{'blocks':40} {'together':>9} {'sum':>9} {'counted':>9}")
    for i, nats in alone.items():
        print(f"{blocks[i].module:40} {nats:9.4f}")
    for pair in itertools.combinations(range(len(blocks)), 2):
        together, total = lost(pair), sum(alone[i] for i in pair)
        if pair in beside:
            beyond[pair] = max(together - total, 0.0)
        show(blocks, pair, together, total, total + beyond.get(pair, 0.0), "neighbours" if pair in beside else "")
    for first, second, third in itertools.combinations(range(len(blocks)), 3) if given.triples else ():
        if (first, second) in beside and (second, third) in beside:
            triple, total = (first, second, third), sum(alone[i] for i in (first, second, third))
            show(blocks, triple, lost(triple), total, total + beyond[first, second] + beyond[second, third], "neighbours")


def show(blocks: Sequence[Site], which: tuple[int, ...], together: float, total: float, counted: float, note: str) -> None:
    print(f"{' '.join(blocks[i].module for i in which):40} {together:9.4f} {total:9.4f} {counted:9.4f}  {note}", flush=True)


if __name__ == "__main__":
    main()
