"""A text model that sees shorter texts: less work in every layer, the same weights.

    python examples/methods/sequence_length.py

In a search: `slimline compress task.py --methods sequence_length --minimize latency`. Texts are padded to the longest that may come, and most are much shorter.
The artefact takes ids and masks of the length that they always had and cuts them itself, on the side where they are padded. Only models whose outputs do not
depend on the length can be cut; `slimline analyze task.py` says why one cannot. Here the mask says what is padding, so that every option (`trim`) cuts
that at every call, which loses nothing; a `length` beside it cuts long texts, too.
"""

from __future__ import annotations

import torch
from torch import nn

from slimline import Samples
from slimline.methods.sequence_length import SequenceLength
from slimline.model.apply import apply_structure
from slimline.model.inputs import find_input_sites
from slimline.model.program import Program
from slimline.targets.onnxruntime import OnnxRuntime


class Encoder(nn.Module):
    """Ids and mask ``[N, T]`` to vectors ``[N, 64]``: the mean over the words that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 64)
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        there = mask.unsqueeze(2).float()
        mean: torch.Tensor = (self.layers(self.words(ids)) * there).sum(1) / there.sum(1)
        return mean


def main() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(5, 60, (200,)).clamp(max=50)
    mask = (torch.arange(128) < lengths[:, None]).long()
    texts = Samples.of({"ids": torch.randint(1, 1000, (200, 128)) * mask, "mask": mask})
    network, example = Encoder().eval(), texts[:2]
    (site,), _ = find_input_sites(network, example)
    runtime = OnnxRuntime()
    modules = {"as it is": network} | {m.label: apply_structure(network, m.rewrite(network, site, None)) for m in SequenceLength.candidates(site)}
    artefacts = [runtime.lower(Program.export(module, example), example) for module in modules.values()]
    with torch.no_grad():
        vectors = network(**texts.kwargs)
    for label, artefact, latency in zip(modules, artefacts, runtime.latency(artefacts, texts[:1], seconds=0.5), strict=True):
        (got,) = runtime.run(artefact, texts)
        print(f"{label:<40} {latency.median:.3f} ms, cosine with the whole text's vector {nn.functional.cosine_similarity(got, vectors).mean():.4f}")


if __name__ == "__main__":
    main()
