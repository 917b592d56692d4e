"""What a candidate's file takes: PyTorch's exporters asked each time, against the graph and template of an earlier candidate filled with other tensors.

    python benchmarks/lowering.py path/to/resnet20_cifar10.py --repeat 5

The task's model in int8, in turn with all its channels and with half of those that channel pruning reaches, made both ways, interleaved. Prints the median seconds
(least to most) of getting the program and of lowering it for ONNX Runtime.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from torch import nn

from slimline.core.plan import Decision, Fingerprint, Plan
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.errors import UnsupportedSite
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.static_int8 import StaticInt8
from slimline.model.folding import fold_norms
from slimline.model.program import Program
from slimline.model.quantizers import freeze
from slimline.model.retrace import Retrace
from slimline.model.sites import find_sites
from slimline.model.trace import trace
from slimline.search.workshop import Workshop
from slimline.sources.dispatch import open_source
from slimline.targets import _onnx_export


def alone(model: nn.Module, example: Samples) -> Program:
    """As the first candidate of a structure is made."""
    program = Program.opened(trace(model, example), example)
    fold_norms(program.module)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    source, target = open_source(str(given.task)), find("targets", "onnxruntime")()
    search = source.data("search")
    assert search is not None
    model, samples = source.model().eval(), search[:32].without_targets()
    sites = tuple(s for s in find_sites(model, source.example())[0] if s.kind in ("weight", "channels"))
    workshop = Workshop(model, samples[:2], samples, sites, target)

    def plan(keep: float | None) -> Plan:
        """Everything in int8 that can be, with this share of the channels."""
        halves = [] if keep is None else [Decision(site=s.id, method=ChannelPrune(keep=keep)) for s in sites if s.kind == "channels"]
        eights = [Decision(site=s.id, method=StaticInt8()) for s in sites if s.kind == "weight" and legal(s.id)]
        return Plan(model=Fingerprint(architecture="", weights=""), decisions=(*halves, *eights))

    def legal(name: str) -> bool:
        try:
            return bool(workshop.numeric_edits(workshop.program, name, StaticInt8(), workshop.statistics))
        except UnsupportedSite:
            return False

    plans = [plan(None), plan(0.5)]
    structures = [workshop.structure(p) for p in plans]
    retrace, seconds = Retrace(workshop.example), dict[str, list[float]]()

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    for turn in range(given.repeat + 1):  # the first one fills the templates, and does not count
        for plan_, module in zip(plans, structures, strict=True):
            timed("program, traced", partial(alone, module, workshop.example))
            timed("program, from a graph that is there", partial(retrace.program, module))
            frozen = freeze(workshop.build(plan_, module).training)
            lower = partial(target.lower, frozen, workshop.example)
            with mock.patch.object(_onnx_export, "exported", lambda graph, example, export: export(graph)):
                timed("file, exported", lower)
            timed("file, from a template", lower)
        if not turn:
            seconds.clear()
    for name, found in seconds.items():
        print(f"{name:36} {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f}, {len(found)} times)")


if __name__ == "__main__":
    main()
