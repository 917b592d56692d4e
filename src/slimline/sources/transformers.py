"""A Hugging Face folder, ``config.json`` and safetensors, as a torch module. Nothing is downloaded, and no code of the folder's is run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimline.errors import ModelError, UsageError
from slimline.sources.foreign import ForeignModel

LARGEST_CONFIG = 2**24
SHOWN = 5  # names in a message
WANTED = ("logits", "last_hidden_state", "start_logits", "prediction_logits", "image_embeds", "text_embeds")


class HuggingFace(nn.Module):
    """A model of the ``transformers`` library that is called with tensors and gives one: scores, or else the last hidden state.

    Its parameters lie under ``model``, by the library's own names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[N, ...]``."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "pixel_values": pixel_values,
            "input_features": input_features,
            "input_values": input_values,
            "decoder_input_ids": decoder_input_ids,
        }
        outputs = self.model(**{k: v for k, v in given.items() if v is not None})
        for name in WANTED:
            found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
            if isinstance(found, torch.Tensor):
                return found
        raise ModelError(f"{type(self.model).__name__} gives none of {', '.join(WANTED)}.", hint="Write a FILE.py whose model() wraps it and returns tensors.")


def open_folder(path: Path, *, data: Path | None = None, metric: str = "") -> ForeignModel:
    """The source for ``slimline compress FOLDER --data FILE.py``; data give the inputs by name (``input_ids``, ``pixel_values``).

    Raises:
        ModelError: the folder does not hold a model that the library knows, or only pickled weights.
        UsageError: the library is not installed.
    """
    config = read_config(path)
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} holds no .safetensors file.",
            hint="Pickled weights (pytorch_model.bin) can run code when they are opened: convert them where you trust them, with model.save_pretrained(FOLDER).",
        )
    if config.get("auto_map"):
        raise ModelError(
            f"{path} asks for Python code of its own (auto_map in config.json), which Slimline does not run.", hint="Write a FILE.py whose model() makes it."
        )
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{path} is a Hugging Face folder, and transformers is not installed.", hint="Install it with: pip install 'slimline[transformers]'")
    return ForeignModel.with_task(path, lambda example: build(path, config), data=data, metric=metric, title=path.resolve().name)


def read_config(path: Path) -> dict[str, Any]:
    """The folder's ``config.json``.

    Raises:
        ModelError: it is no JSON object, or larger than 16 MiB.
    """
    file = path / "config.json"
    if file.stat().st_size > LARGEST_CONFIG:
        raise ModelError(f"{file} has {file.stat().st_size:,} bytes; a configuration has at most {LARGEST_CONFIG:,}.")
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is no JSON: {str(error)[:200]}.", hint="Save the model again with model.save_pretrained(FOLDER).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is no JSON object.", hint="Save the model again with model.save_pretrained(FOLDER).")
    return found


def build(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """The model of the class that the configuration names.

    Raises:
        ModelError: the library has no such class, or refuses the folder, or the folder does not hold all weights.
    """
    import transformers

    names = config.get("architectures") or []
    kind = next((getattr(transformers, str(n), None) for n in names), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ModelError(
            f"{path}: transformers {transformers.__version__} has no model {', '.join(map(str, names))[:100] or '(none is named)'}.",
            hint="Write a FILE.py whose model() makes it.",
        )
    try:
        model, loaded = kind.from_pretrained(  # type: ignore[attr-defined]  # a class of a library without stubs
            str(path), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise ModelError(f"{path}: transformers refuses it: {' '.join(str(error).split())[:300]}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # the library would go on with random numbers
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise ModelError(
            f"{path} holds no weights for {', '.join(missing[:SHOWN])}{more} of {kind.__name__}.",
            hint="Train the model for its task and save it whole: model.save_pretrained(FOLDER).",
        )
    settings: Any = model.config
    settings.use_cache = False
    return HuggingFace(with_linear_layers(model)).eval()


def with_linear_layers(model: nn.Module) -> nn.Module:
    """``model`` with a linear layer in the place of each ``Conv1D`` of the library's, which is one whose weight lies the other way round (GPT-2)."""
    from transformers.pytorch_utils import Conv1D

    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, Conv1D)]:
        layer = nn.utils.skip_init(nn.Linear, *module.weight.shape)
        layer.weight, layer.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    return model
