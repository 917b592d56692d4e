"""An artefact that anybody may have made: opened, and run on one sample, in a child process with limits before this one touches it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slimline.errors import UsageError
from slimline.sources import _child

if TYPE_CHECKING:
    import torch

MEMORY = {".onnx": _child.LEAST_MEMORY}
MOST_MEMORY = 8 * 2**30  # address space, of which torch alone takes 3; other runtimes reserve what they never touch
OPEN_SECONDS, RUN_SECONDS = 30, 120


def check_trust(path: Path, trusted: bool) -> None:
    """``.pt2`` files hold programs, for whose loader no limit is enough.

    Raises:
        UsageError: it is one, and it is not said that it is trusted.
    """
    if path.suffix.lower() == ".pt2" and not trusted:
        raise UsageError(f"{path} is a torch.export program: opening it can run code that it holds.", hint="If you made it or trust who did, give --trust.")


def check_artefact(path: Path, runner: Path, title: str, sample: Mapping[str, torch.Tensor] | None = None) -> None:
    """A file as a runtime in this process may open it: taken by the target's ``runner`` in a child, and run there on the ``sample`` if one is given.

    An ONNX file must hold all of its tensors.

    Raises:
        ModelError: what is wrong with it; ``title`` is what the runtime is called.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
        files = {}
        for place, (name, tensor) in enumerate((sample or {}).items()):
            files[name] = str(Path(folder, f"in_{place}.npy"))
            np.save(files[name], tensor.numpy())
        limits = (
            {"memory": MEMORY.get(path.suffix, MOST_MEMORY), "seconds": OPEN_SECONDS} if sample is None else {"memory": MOST_MEMORY, "seconds": RUN_SECONDS}
        )
        _child.parse("slimline.sources._artefact_run:check", path, runner=str(runner), title=title, sample=files, **limits)
