"""What it takes to get the pages of large tensors anew at every forward pass: a model with the C library's usual heap, and with the one that a job keeps.

    python benchmarks/heap.py path/to/efficientnet_lite0.py --batch 64

Each round runs both in turn; prints seconds of the processor, in user mode and in the kernel, for a pass, and the most memory so far.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
from pathlib import Path

import torch

from slimline.core.heap import kept_heap
from slimline.sources.task_file import TaskFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = TaskFile.load(str(given.task))
    model, split = source.model(), source.data("search")
    assert split is not None
    samples = split[: given.batch].map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)
    taken: dict[str, list[tuple[float, float]]] = {"usual": [], "kept": []}
    with torch.inference_mode():
        model(*samples.args, **samples.kwargs)
        for _ in range(given.rounds):
            for name, heap in (("usual", contextlib.nullcontext()), ("kept", kept_heap())):
                with heap:
                    for counted in (False, True):
                        before = resource.getrusage(resource.RUSAGE_SELF)
                        model(*samples.args, **samples.kwargs)
                        after = resource.getrusage(resource.RUSAGE_SELF)
                        if counted:
                            taken[name].append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
    for name, times in taken.items():
        users, kernels = zip(*times, strict=True)
        spread = ", ".join(f"{sum(t):.2f}" for t in times)
        print(f"{name:6} {statistics.median(users):6.2f} s user {statistics.median(kernels):6.2f} s kernel   (sums: {spread})")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
