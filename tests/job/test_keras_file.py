"""A finished plan as a Keras file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")

from slimline.core.edits import Keep
from slimline.core.samples import Samples
from slimline.job.keras_file import _take_all_inputs
from slimline.model.apply import apply_structure, kept_positions
from slimline.model.inputs import find_input_sites
from slimline.model.program import Program
from slimline.sources._keras_writing import compressed_file
from slimline.sources.keras import KerasModel

FILES = Path(__file__).parents[1] / "sources" / "keras_files"


def test_features_that_were_left_out_have_weights_of_zero(tmp_path: Path) -> None:
    model = KerasModel.read(FILES / "dense.keras")
    example = Samples.of(torch.from_numpy(np.load(FILES / "dense.npz")["inputs"]))
    lifted = model.module(example)
    (site,), _ = find_input_sites(lifted, example)
    edits = [Keep(m, (0, 2, 3)) for m in site.members]
    pruned = apply_structure(lifted, edits)
    values = Program.export(pruned, example).parameters()
    assert values["dense.weight"].shape == (12, 12)
    kept = {n: {d: torch.tensor(p) for d, p in dims.items()} for n, dims in kept_positions(lifted, edits).items()}
    _take_all_inputs(lifted, example, kept, values)
    (tmp_path / "model.keras").write_bytes(compressed_file(model, example, kept, values))
    again = KerasModel.read(tmp_path / "model.keras").module(example)
    assert (again.get_parameter("dense.weight").abs().sum(0) == 0).sum() == 4
    with torch.no_grad():
        torch.testing.assert_close(again(*example.args), pruned(*example.args), rtol=1e-4, atol=1e-5)
