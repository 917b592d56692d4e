"""What the target ``onnxruntime`` writes, in onnxruntime-web (WebAssembly under Node): every format it claims gives there what it gives here.

Where ``npm install onnxruntime-web`` was run, ``SLIMLINE_ONNXRUNTIME_WEB`` names the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slimline.targets._feed import feed
from slimline.targets.onnxruntime import OnnxRuntime
from slimline.testing.target_suite import TargetSuite, claims, inputs_of, lowered

FOLDER = Path(os.environ.get("SLIMLINE_ONNXRUNTIME_WEB") or "/nowhere")
RUN = Path(__file__).parents[2] / "examples" / "web" / "run.mjs"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "node_modules" / "onnxruntime-web").is_dir() or shutil.which("node") is None, reason="onnxruntime-web and Node are not installed"
)


@pytest.mark.parametrize("claim", claims(OnnxRuntime), ids=lambda c: c.label)
def test_a_format_that_is_claimed_runs_in_the_web(claim, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, artifact = lowered(OnnxRuntime, claim.ops, claim.format, claim.execute)
    samples = inputs_of(claim.ops, 2)
    artifact.write(tmp_path / "model.onnx")
    given = {n: {"type": str(a.dtype), "dims": a.shape, "data": a.ravel().tolist()} for n, a in feed(artifact, samples).items()}
    (tmp_path / "x.json").write_text(json.dumps(given))
    done = subprocess.run(
        ["node", str(RUN), str(tmp_path / "model.onnx"), "--inputs", str(tmp_path / "x.json")], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = json.loads(done.stdout)["outputs"]
    for name, here in zip(artifact.outputs, OnnxRuntime().run(artifact, samples), strict=True):
        there = np.array(outputs[name]["data"]).reshape(outputs[name]["dims"])
        apart = float(np.abs(there - here.numpy()).max() / (here.max() - here.min()))
        assert apart <= TargetSuite.allowed(claim), f"{name}: {apart:.4f} of its range apart"
