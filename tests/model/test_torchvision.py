"""The hardest of torchvision's own models: 30 % of all channels go, and the artefact gives what the pruned module gives.

They run where torchvision is installed, which belongs to one build of torch; ``test_architectures`` has small twins of them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=(ImportError, RuntimeError))

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
HARD = (  # with what was hard about them
    "shufflenet_v2_x0_5",  # halves and shuffles
    "swin_t",  # shifted windows
    "swin_v2_t",  # attention by cosine
    "swin3d_t",  # windows of a video
    "maxvit_t",  # windows and grids
    "mvit_v2_s",  # heads that share convolutions, norms and positions
    "raft_small",  # two images in one batch, correlations
    "ssdlite320_mobilenet_v3_large",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "lraspp_mobilenet_v3_large",
    "googlenet",  # branches that are joined
    "densenet121",  # every layer reads all before it
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not SCRIPT.exists():
        pytest.skip("benchmarks/architectures.py is not here")
    spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", HARD)
def test_channels_go_and_the_artefact_gives_what_the_module_gives(name: str, benchmark: ModuleType) -> None:
    *_, row = benchmark.one(f"torchvision:{name}", 0.7)
    assert benchmark.passed(row), row
