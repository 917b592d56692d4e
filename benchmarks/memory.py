"""Peak memory: what each target's planner computes for its artefact, beside the runtime's own number for the same file.

    python benchmarks/memory.py --task path/to/resnet20_cifar10.py --task path/to/efficientnet_lite0.py --json memory.json

Three small models (a perceptron, a separable convolutional network for keywords, a transformer encoder) stand here; ``--task`` adds those of task files. Each is lowered in float32 and, where the runtime has
a quantizer of its own, through that to int8; batch 1, one thread, every measurement in a process of its own. Compared is what both know: values, without the weights.

- ``litert-micro``: the interpreter's recording allocator: the whole arena, its own records included.
- ``onnxruntime``: what its arena takes first in the second call, which is the memory pattern that it planned from the first. What its kernels ask for beyond it (accumulators of integer
  convolutions, columns of images) is told apart: the planner does not know it. Where what it holds already is enough, so that it takes none, nothing is compared.
- ``torch``: the most live bytes at the end of an operation by PyTorch's profiler, with the inputs, which the caller holds; what kernels take meanwhile is told apart.
- ``executorch``, ``litert``, ``openvino``: none of them tells. The growth of the process's heap over the first call stands there, which holds tables and packed weights besides values: it is not compared.
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import itertools
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimline.core.contracts import Artifact, Target
from slimline.core.registry import find, registered
from slimline.core.samples import Samples
from slimline.errors import SlimlineError
from slimline.model.program import Program
from slimline.sources.task_file import TaskFile
from slimline.targets._feed import feed

CALIBRATION = 16  # samples: bytes do not depend on them
WITHIN = 0.05


class Separable(nn.Module):
    """A keyword network of MLPerf Tiny's shape: ``[N, 1, 49, 10]`` to ``[N, 12]``."""

    def __init__(self) -> None:
        super().__init__()
        body = [m for _ in range(4) for m in (nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())]
        self.features, self.head = nn.Sequential(nn.Conv2d(1, 64, (10, 4), 2, (5, 1)), nn.ReLU(), *body), nn.Linear(64, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return scores


class Encoder(nn.Module):
    """Two transformer layers of width 64 over 32 places: ``[N, 32, 64]`` to ``[N, 8]``."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.layers(x).mean(1))
        return scores


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (784,)),
    "separable": (Separable, (1, 49, 10)),
    "encoder": (Encoder, (32, 64)),
}


def program_of(name: str) -> tuple[Program, Samples]:
    """The model by its name here or its task file, exported, and samples for it."""
    if name in MODELS:
        make, shape = MODELS[name]
        torch.manual_seed(0)
        samples = Samples.of(torch.randn(CALIBRATION, *shape, generator=torch.Generator().manual_seed(1)))
        return Program.export(make().eval(), samples[:2]), samples
    task = TaskFile.load(name)
    found = task.data("train") or task.data("search")
    samples = task.example() if found is None else replace(found[:CALIBRATION], targets=None)
    return Program.export(task.model(), task.example()), samples


def of_micro(target: Any, artifact: Artifact, example: Samples) -> tuple[int, int]:
    return sum(target.measured_arena(artifact)), 0


def of_onnxruntime(target: Any, artifact: Artifact, example: Samples) -> tuple[int, int]:
    """Its arena grows by what is asked for and shrinks after each call: what the log says of the second one."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(0)
    place = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    how = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(how))
    options, call = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    call.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = onnxruntime.InferenceSession(artifact.payload, options, providers=["CPUExecutionProvider"])
    given = feed(artifact, example[:1])
    session.run(None, given, call)
    said = logged(lambda: session.run(None, given, call))
    planned, *scratch = map(int, re.findall(r"Extended allocation by (\d+) bytes", said) or "0")
    return planned, sum(scratch)


def of_torch(target: Any, artifact: Artifact, example: Samples) -> tuple[int, int]:
    from torch.profiler import ProfilerActivity, profile

    call, few = target._call(artifact), example[:1]
    call(few)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call(few)
    events = sorted(found.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    ends = [0]  # of the operations of the graph, not of those within them
    for event in events:
        if event.name() != "[memory]" and event.start_ns() >= ends[-1]:
            ends.append(event.start_ns() + event.duration_ns())
    times, live = [t for t, _ in changes], [0, *itertools.accumulate(n for _, n in changes)]
    held = sum(t.nbytes for t in few.tensors)  # the caller made the inputs before the profiler came
    values = max(live[bisect.bisect(times, end)] for end in ends)
    return held + values, max(live) - values


def of_heap(target: Any, artifact: Artifact, example: Samples) -> tuple[int, int]:
    """How much the first call leaves on the heap."""
    if target.name == "executorch":
        runner = target._runner(artifact)
        tensors = runner.tensors(feed(artifact, example[:1]))
        return grown(lambda: runner.call(tensors)), 0
    if target.name == "litert":
        runner = target._runner(artifact)
        given = feed(artifact, example[:1])
        return grown(lambda: runner(given)), 0
    request, given = target._compiled(artifact), feed(artifact, example[:1])
    return grown(lambda: request.create_infer_request().infer(given)), 0


OWN: Mapping[str, Callable[[Any, Artifact, Samples], tuple[int, int]]] = {"litert-micro": of_micro, "onnxruntime": of_onnxruntime, "torch": of_torch}


def grown(call: Callable[[], object]) -> int:
    class Mallinfo(ctypes.Structure):
        _fields_ = [(n, ctypes.c_size_t) for n in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]]

    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = Mallinfo
    before = libc.mallinfo2()
    kept = call()
    after = libc.mallinfo2()
    del kept
    return int(after.uordblks + after.hblkhd) - int(before.uordblks + before.hblkhd)


def logged(call: Callable[[], object]) -> str:
    """What the process's standard error got meanwhile, from C too."""
    with tempfile.TemporaryFile() as heard:
        before = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(before, 2)
            os.close(before)
        heard.seek(0)
        return heard.read().decode(errors="replace")


def artifacts(target: Target, program: Program, samples: Samples) -> Iterator[tuple[str, Artifact]]:
    whole = target.lower(program, samples[:2])
    yield "float32", whole
    maker = find("targets", "litert")() if target.name == "litert-micro" else target
    made = next((q.artifact for q in maker.plain_int8(whole, samples) if q.artifact is not None), None)
    if made is not None:
        yield "int8", target.opened(replace(made, target=target.name))


def lowered(name: str, kind: str) -> list[tuple[str, Artifact, Samples, int]]:
    """Each form of one model in one target, and what the planner computes for it."""
    torch.set_num_threads(1)
    target = find("targets", kind)()
    program, samples = program_of(name)
    return [(form, artifact, samples[:1], target.memory_parts(artifact, samples)[1]) for form, artifact in artifacts(target, program, samples)]


def told(kind: str, artifact: Artifact, example: Samples) -> tuple[int, int]:
    """The runtime's own number, and what it took beyond it."""
    torch.set_num_threads(1)
    return OWN.get(kind, of_heap)(find("targets", kind)(), artifact, example)


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """In a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| model | runtime | weights | planner, bytes | runtime's own, bytes | planner / runtime | kernels' scratch, bytes |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        model = Path(row["model"]).stem
        if "stopped" in row:
            yield f"| {model} | {row['target']} | | | | {row['stopped']} | |"
            continue
        ratio = row["planner"] / row["runtime"] if row["runtime"] else float("nan")
        verdict = f"{ratio:.3f}" + ("" if abs(ratio - 1) <= WITHIN else ": beyond 5 %") if row["compared"] else "not compared"
        scratch = f"{row['scratch']:,}" if row["scratch"] else ""
        yield f"| {model} | {row['target']} | {row['form']} | {row['planner']:,} | {row['runtime']:,} | {verdict} | {scratch} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", default=[], help="a task file; may be repeated")
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="may be repeated (all)")
    parser.add_argument("--target", action="append", default=[], help="may be repeated (all)")
    parser.add_argument("--json", type=Path, default=Path("build/memory.json"), help="what is there is not measured again")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.is_file() else []
    for name in (*(given.model or MODELS), *given.task):
        for kind in given.target or registered("targets"):
            if any((r["model"], r["target"]) == (name, kind) for r in rows):
                continue
            about = {"model": name, "target": kind}
            try:
                find("targets", kind).require()
                new = []
                for form, artifact, example, planned in apart(lowered, name, kind):
                    own, scratch = apart(told, kind, artifact, example)
                    new.append(about | {"form": form, "planner": planned, "runtime": own, "scratch": scratch, "compared": kind in OWN and own > 0})
                rows += new
            except SlimlineError as error:
                rows.append(about | {"stopped": error.message})
            except BrokenProcessPool:
                rows.append(about | {"stopped": "the process that measured it ended abruptly"})
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(rows, indent=2))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
