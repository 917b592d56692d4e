"""A finished plan as a Keras file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")

from slimline.core.edits import Keep, Mix
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import ModelError
from slimline.job.keras_file import take_all_inputs
from slimline.model.apply import apply_structure, kept_positions
from slimline.model.entry import ENTRY
from slimline.model.inputs import find_input_sites
from slimline.model.program import Program
from slimline.sources._keras_writing import compressed_file
from slimline.sources.keras import KerasModel

FILES = Path(__file__).parents[1] / "sources" / "keras_files"


def opened() -> tuple[KerasModel, Samples, nn.Module, Site]:
    model = KerasModel.read(FILES / "dense.keras")
    example = Samples.of(torch.from_numpy(np.load(FILES / "dense.npz")["inputs"]))
    lifted = model.module(example)
    (site,), _ = find_input_sites(lifted, example)
    return model, example, lifted, site


def written_back(folder: Path, edits: Sequence[Keep | Mix], projected: tuple[str, ...] = ()) -> nn.Module:
    """The Keras file after the edits, lifted again; it gives what the edited module gives."""
    model, example, lifted, _ = opened()
    changed = apply_structure(lifted, edits)
    values = Program.export(changed, example).parameters()
    assert values["dense.weight"].shape == (12, 12)
    kept = {n: {d: torch.tensor(p) for d, p in dims.items()} for n, dims in kept_positions(lifted, edits).items()}
    take_all_inputs(lifted, example, kept, values, projected)
    (folder / "model.keras").write_bytes(compressed_file(model, example, kept, values))
    again = KerasModel.read(folder / "model.keras").module(example)
    with torch.no_grad():
        torch.testing.assert_close(again(*example.args), changed(*example.args), rtol=1e-4, atol=1e-5)
    return again


def test_features_that_were_left_out_have_weights_of_zero(tmp_path: Path) -> None:
    again = written_back(tmp_path, [Keep(m, (0, 2, 3)) for m in opened()[3].members])
    assert (again.get_parameter("dense.weight").abs().sum(0) == 0).sum() == 4


def test_projection_of_an_input_goes_into_the_weights_that_read_it(tmp_path: Path) -> None:
    site = opened()[3]
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    again = written_back(tmp_path, [Mix(m, matrix) for m in site.members], (site.id,))
    assert torch.linalg.matrix_rank(again.get_parameter("dense.weight").reshape(12, 4, 4)[0]) == 3


def test_several_projections_are_not_written_back() -> None:
    _, example, lifted, site = opened()
    values = {f"{ENTRY}{i}.linear.weight": torch.ones(3, 4) for i in range(2)}
    with pytest.raises(ModelError, match="Several inputs go through a projection"):
        take_all_inputs(lifted, example, {}, values, (site.id, "#input.1"))
