"""What a candidate's loss is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from slimline.core.samples import Samples
from slimline.job.search import divergence_of

REFERENCE = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Shifted:
    """A runtime in which every output comes out larger by one."""

    def run(self, artifact: Any, samples: Samples, *, threads: int) -> tuple[torch.Tensor, ...]:
        return (REFERENCE + 1.0,)


def test_a_candidate_of_an_encoder_loses_relative_squared_error() -> None:
    samples = Samples.of(torch.zeros(16, 1))
    lost = {c: divergence_of(cast(Any, SimpleNamespace(target=Shifted(), classes=c)), cast(Any, None), samples, REFERENCE) for c in (True, False)}
    assert lost[True] == pytest.approx(0, abs=1e-5)
    assert lost[False] == pytest.approx(REFERENCE.numel() / float((REFERENCE**2).sum()), rel=1e-5)
