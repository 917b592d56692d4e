"""What weights in all of their 8 bits cost where integer kernels saturate: ONNX Runtime's own quantizer, by the types that it is given.

    python benchmarks/saturation.py path/to/resnet20_cifar10.py --samples 3000

Prints for each pair of types (activations x weights; ``reduced``: one bit of the weights stays free) the quality on the
first holdout samples and the median and 95th percentile of the latency, interleaved, one thread, batch 1.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from slimline.core.contracts import Artifact
from slimline.measure import quality
from slimline.model.program import Program
from slimline.sources.task_file import TaskFile
from slimline.targets._onnx_plain import Reader, _preprocess
from slimline.targets.onnxruntime import OnnxRuntime

TYPES = {
    "unsigned x signed": (QuantType.QUInt8, QuantType.QInt8, False),
    "unsigned x signed, reduced": (QuantType.QUInt8, QuantType.QInt8, True),
    "unsigned x unsigned": (QuantType.QUInt8, QuantType.QUInt8, False),
    "signed x signed": (QuantType.QInt8, QuantType.QInt8, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--samples", type=int, default=3000)
    given = parser.parse_args()
    source, target = TaskFile.load(str(given.task)), OnnxRuntime()
    model, search, holdout = source.model(), source.data("search"), source.data("holdout")
    assert search is not None and holdout is not None
    samples, few = holdout[: given.samples], search[:2].without_targets()
    made: dict[str, Artifact] = {"float32": target.lower(Program.export(model, few), few)}
    with tempfile.TemporaryDirectory() as folder:
        prepared = _preprocess(made["float32"], Path(folder))
        for name, (activations, weights, reduced) in TYPES.items():
            file = Path(folder, "quantized.onnx")
            quantize_static(
                str(prepared),
                str(file),
                Reader(made["float32"], search[:256]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduced,
                activation_type=activations,
                weight_type=weights,
            )
            made[name] = replace(made["float32"], payload=file.read_bytes())
    print(f"integer kernels saturate here: {'yes' if target.saturates() else 'no'}")
    latencies = target.latency(list(made.values()), few[:1], seconds=3.0)
    for (name, artifact), latency in zip(made.items(), latencies, strict=True):
        outputs = target.run(artifact, samples, threads=2)[0]
        found = quality.evaluate(quality.named("top1"), outputs, samples.targets)[0]
        print(f"{name:28} quality {found:.4f}, {latency.median:.3f} ms (95 % of runs below {latency.p95:.3f})")


if __name__ == "__main__":
    main()
