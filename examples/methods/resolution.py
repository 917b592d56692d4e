"""A network that sees smaller images: less work in every layer, the same weights.

    python examples/methods/resolution.py

In a search: `slimline compress task.py --methods resolution --minimize latency`. The artefact takes the images that it always took and resizes
them itself. Only models that pool over all positions can be resized; `slimline analyze task.py` says why one cannot.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.methods.resolution import Resolution
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime


def main() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    images = Samples.of(torch.rand(2, 3, 64, 64))
    (site,), _ = find_input_sites(network, images)
    runtime = OnnxRuntime()
    programs = {"as it is": Program.export(network, images)}
    for method in Resolution.candidates(site):
        programs[method.label] = Program.export(apply_structure(network, method.rewrite(network, site, None)), images)
    artefacts = [runtime.lower(program, images) for program in programs.values()]
    for (label, program), artefact, latency in zip(programs.items(), artefacts, runtime.latency(artefacts, images[:1], seconds=1.0), strict=True):
        print(f"{label:<32} {program.macs():>12,} multiply-adds, {latency.median:.3f} ms, {artefact.size_bytes:,} bytes")


if __name__ == "__main__":
    main()
