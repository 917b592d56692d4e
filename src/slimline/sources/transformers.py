"""A Hugging Face folder, ``config.json`` and safetensors, as a torch module. Nothing is downloaded, and no code of the folder's is run."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimline.core.file_kinds import PICKLED
from slimline.errors import ModelError, UsageError
from slimline.sources import _child
from slimline.sources._folder_parse import CONFIG, INDEX
from slimline.sources._inside import DO_NOT_USE, open_inside
from slimline.sources.foreign import ForeignModel

MOST_ELEMENTS = 4  # parameters for each stored one: a head that is missing is told by name, and not allocated beyond this
MOST_KEPT = 2**26
KEPT = ("config.json", "tokenizer*.json", "tokenizer.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
        "preprocessor_config.json", "spiece.model", "sentencepiece.bpe.model")  # fmt: skip
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
        ModelError: the folder is hostile or damaged, or holds pickled weights only.
        UsageError: the library is not installed.
    """
    checked, beside = _child.parse("slimline.sources._folder_parse:parse", path / CONFIG), kept(path)
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{path} is a Hugging Face folder, and transformers is not installed.", hint="Install it with: pip install 'slimline[transformers]'")
    title = path.resolve().name
    return ForeignModel.with_task(path, lambda example: build(path, checked), data=data, metric=metric, title=title, beside=beside)


def kept(path: Path) -> dict[str, bytes]:
    """The configuration and the tokenizer or preprocessor, by file name: what a compressed model needs at its side to be fed.

    Raises:
        ModelError: one of them is no regular file, or they are larger than 64 MiB in all.
    """
    found: dict[str, bytes] = {}
    left = MOST_KEPT
    for name in sorted(n for n in os.listdir(path) if any(fnmatch.fnmatch(n, k) for k in KEPT) and not n.endswith(PICKLED)):
        with open_inside(path, name, "a file that goes beside the artefact") as file:
            found[name] = file.read(left + 1)
        left -= len(found[name])
        if left < 0:
            raise ModelError(f"{path}: {', '.join(found)} have more than {MOST_KEPT:,} bytes, too many for files that go beside the artefact.", hint=DO_NOT_USE)
    return found


def build(path: Path, checked: Mapping[str, Any]) -> nn.Module:
    """The model of the class that the configuration names, from what ``_folder_parse`` has ``checked``.

    Raises:
        ModelError: the library has no such class, or refuses the folder, or the folder does not hold all weights.
    """
    import transformers

    named = checked["config"].get("architectures")
    names = named if isinstance(named, list) else []
    kind = next((getattr(transformers, str(n), None) for n in names), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ModelError(
            f"{path}: transformers {transformers.__version__} has no model {', '.join(map(str, names))[:100] or '(none is named)'}.",
            hint="Write a FILE.py whose model() makes it.",
        )
    library: Any = kind  # a class of a library without stubs
    try:
        with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
            show(path, checked, Path(folder))
            config = library.config_class.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                asked = sum(p.numel() for p in library(config).parameters())
            if asked > MOST_ELEMENTS * checked["elements"]:
                raise ValueError(f"its configuration describes {asked:,} parameters, its files hold {checked['elements']:,}")
            model, loaded = library.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
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


def show(path: Path, checked: Mapping[str, Any], folder: Path) -> None:
    """Put what was checked into ``folder``, for the library to see that and nothing else: adapters and other weights beside it are not followed."""
    (folder / CONFIG).write_text(json.dumps(checked["config"]))
    if checked["index"] is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": checked["index"]}))
    for name in checked["files"]:
        (folder / name).symlink_to((path / name).absolute())


def with_linear_layers(model: nn.Module) -> nn.Module:
    """``model`` with a linear layer in the place of each ``Conv1D`` of the library's, which is one whose weight lies the other way round (GPT-2)."""
    from transformers.pytorch_utils import Conv1D

    for name, module in [(n, m) for n, m in model.named_modules() if isinstance(m, Conv1D)]:
        layer = nn.utils.skip_init(nn.Linear, *module.weight.shape)
        layer.weight, layer.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer)
    return model
