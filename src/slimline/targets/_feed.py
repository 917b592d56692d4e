"""Samples as a runtime takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from slimline.core.contracts import Artifact
from slimline.core.samples import Samples
from slimline.errors import DataError


def feed(artifact: Artifact, inputs: Samples) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs by the artefact's names: positional ones in order, then keywords.

    Raises:
        DataError: an input of the artefact is not given.
    """
    given = {k: v for k, v in inputs.kwargs.items() if k in artifact.inputs}
    free = [n for n in artifact.inputs if n not in given]
    if len(free) != len(inputs.args):
        raise DataError(
            f"The artefact takes the inputs {', '.join(artifact.inputs)}; the samples hold {len(inputs.args)} positional ones and {', '.join(inputs.kwargs) or 'none'} by name.",
            hint="Return the inputs as the model is called with them.",
        )
    named = [*zip(free, inputs.args, strict=True), *given.items()]
    return {n: np.ascontiguousarray(t.detach().numpy()) for n, t in named}


def repeat(example: Samples, batch: int) -> Samples:
    """``batch`` samples, the example's over and over."""
    import torch

    return example[torch.arange(batch) % len(example)]
