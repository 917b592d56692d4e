"""Whether 16-bit floats pay in ONNX Runtime on this processor: bytes, latency and outputs beside float32 and 8-bit weights.

    python benchmarks/half.py path/to/resnet20_cifar10.py

``weights``: constants are stored in 16 bits and widened when the session is made. ``all``: ONNX Runtime's own converter, the graph computes in 16 bits where kernels are there (elsewhere the runtime casts).
All are timed in turn in one process at batch 1 on one thread. The difference is the largest of an output over the largest output, for 64 samples.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from slimline.core.contracts import Artifact
from slimline.core.registry import find
from slimline.model.quantizers import freeze, quantize
from slimline.search.workshop import Workshop
from slimline.sources.task_file import TaskFile

SMALL, SAMPLES, SECONDS = 64, 64, 4.0  # values: a constant of fewer stays; samples compared; seconds of timing for each


def narrowed(artifact: Artifact, kind: int) -> Artifact:
    """Large float constants in 16 bits, with a Cast that the runtime carries out once."""
    model = onnx.load_from_string(artifact.payload)
    stored = helper.tensor_dtype_to_np_dtype(kind)
    for place, constant in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.size > SMALL:
            name = constant.name
            model.graph.initializer[place].CopyFrom(numpy_helper.from_array(values.astype(stored), f"{name}_narrow"))
            model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_narrow"], [name], to=TensorProto.FLOAT))
    return replace(artifact, payload=model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    given = parser.parse_args()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    task, target = TaskFile.load(str(given.task)), find("targets", "onnxruntime")()
    samples = task.example()
    found = task.data("search")
    compared = samples if found is None else found[:SAMPLES].without_targets()
    workshop = Workshop(task.model(), samples, None, (), target)
    program, weight_only = workshop.program, find("methods", "weight_only")()
    edits = [e for name in program.weights for e in workshop.numeric_edits(program, name, weight_only, None)]
    float32 = target.lower(program, samples)
    whole = convert_float_to_float16(onnx.load_from_string(float32.payload), keep_io_types=True)
    artifacts = {
        "float32": float32,
        "float16 weights": narrowed(float32, TensorProto.FLOAT16),
        "bfloat16 weights": narrowed(float32, TensorProto.BFLOAT16),
        "float16 all": replace(float32, payload=whole.SerializeToString()),
        "8-bit weights": target.lower(freeze(quantize(program, edits)), samples),
    }
    expected: torch.Tensor = target.run(float32, compared)[0]
    latencies = target.latency(list(artifacts.values()), samples, seconds=SECONDS)
    print("| | bytes | ms | difference |\n|---|---|---|---|")
    for (name, artifact), latency in zip(artifacts.items(), latencies, strict=True):
        apart = float((target.run(artifact, compared)[0] - expected).abs().max() / expected.abs().max())
        print(f"| {name} | {artifact.size_bytes:,} | {latency.median:.3f} | {apart:.0e} |")


if __name__ == "__main__":
    main()
