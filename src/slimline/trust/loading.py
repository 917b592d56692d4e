"""Weights from files that others made: safetensors only, since a pickle can run code when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slimline.core.file_kinds import PICKLED
from slimline.errors import ModelError

if TYPE_CHECKING:
    import torch


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file by name, on the CPU.

    Raises:
        ModelError: there is no such file, it is of another kind, or it is damaged.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"w": torch.ones(2)}, Path(folder, "a.safetensors"))
        ...     load_weights(Path(folder, "a.safetensors"))["w"].tolist()
        [1.0, 1.0]
    """
    import safetensors
    from safetensors.torch import load_file

    if path.suffix.lower() in PICKLED:
        raise ModelError(
            f"{path} is a pickle, which can run code when it is opened; Slimline does not open it.",
            hint=f"Convert it once, where you trust it: safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), '{path.stem}.safetensors').",
        )
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is no .safetensors file.", hint="Save the state dict with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        )
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.", hint="Check the path given to --weights.")
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as safetensors: {error}.",
            hint="It is damaged or of another kind: save it again with safetensors.torch.save_file.",
        ) from error
