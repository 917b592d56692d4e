"""What PyTorch's exporter need not do (decision 71): tracing recurrent layers and lowering one again, with and without what Slimline leaves out.

    python benchmarks/exporter.py --steps 200

One thread, CPU seconds, one run each after a warm-up. MobileNetV3-small's lowering is a row of ``benchmarks/architectures.py --only torchvision:mobilenet_v3_small`` (``cpu`` in its --out).
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.model import trace
from slimline.model.program import Program
from slimline.targets import _onnx_export
from slimline.targets.onnxruntime import OnnxRuntime


class Recurrent(nn.Module):
    """``[N, steps, 16]`` to ``[N, 4]`` through a layer in both directions."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.layer, self.head = kind(16, 32, batch_first=True, bidirectional=True), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trace.trace(nn.Linear(3, 3).eval(), Samples.of(torch.randn(2, 3)))
    samples, target = Samples.of(torch.randn(2, given.steps, 16)), OnnxRuntime()
    for kind in (nn.GRU, nn.LSTM):
        model = Recurrent(kind).eval()
        after = seconds(partial(trace.trace, model, samples))
        with mock.patch.object(trace, "in_one_step", contextlib.nullcontext):
            before = seconds(partial(trace.trace, model, samples))
        print(f"trace of {kind.__name__}, {given.steps} steps, free batch: {before:.1f} s, now {after:.1f} s", flush=True)
    program = Program.export(model, samples)
    target.lower(program, samples)
    after = seconds(partial(target.lower, program, samples))
    with mock.patch.object(_onnx_export, "_one_registry", contextlib.nullcontext):
        before = seconds(partial(target.lower, program, samples))
    print(f"lowering an LSTM again: {before:.2f} s, now {after:.2f} s")


if __name__ == "__main__":
    main()
