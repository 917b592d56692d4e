"""Block sparsity: blocks go whole, their mask is small, and what does not divide is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Masked
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.methods.block_sparse import BlockSparse
from slimline.methods.unstructured import Unstructured
from slimline.model.program import Program
from slimline.model.statistics import ProgramStatistics


@functools.cache
def net() -> tuple[Program, ProgramStatistics]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
        samples = Samples.of(torch.randn(64, 8, 6, 6) * torch.linspace(0.1, 2, 6))
    program = Program.export(model, samples[:2])
    return program, ProgramStatistics(program, samples)


def encoded(method: Any, name: str) -> Encode:
    use = net()[0].weights[name]
    edits = method.rewrite(net()[0], Site(id=name, kind="weight", op=use.op, shape=use.shape), net()[1])
    return next(e for e in edits if isinstance(e, Encode))


@pytest.mark.parametrize("name", ["0.weight", "3.weight"])
@pytest.mark.parametrize(("outputs", "inputs"), [(4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("importance", ["magnitude", "second_order", "taylor"])
def test_blocks_go_or_stay_whole(name: str, outputs: int, inputs: int, importance: str) -> None:
    edit = encoded(BlockSparse.model_validate({"sparsity": 0.5, "outputs": outputs, "inputs": inputs, "importance": importance}), name)
    mask = edit.parts["mask"]
    blocks = mask.unflatten(1, (-1, inputs)).unflatten(0, (-1, outputs)).sum((1, 3))
    assert set(blocks.flatten().tolist()) == {0, outputs * inputs}
    assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert not edit.format.decode(edit.parts)[~mask].any() and edit.execute == "integer" and edit.format.whole


def test_magnitude_keeps_the_blocks_with_the_largest_sums() -> None:
    edit = encoded(BlockSparse(importance="magnitude"), "3.weight")
    sums = net()[0].parameter("3.weight").detach().abs().unflatten(0, (-1, 4)).sum(1)
    kept = edit.parts["mask"].unflatten(0, (-1, 4))[:, 0]
    assert float(sums[kept].min()) >= float(sums[~kept].max())


def test_second_order_loses_less_than_magnitude_and_free_choice_less_than_blocks() -> None:
    program, statistics = net()
    moment, weight = statistics.moment("3.weight"), program.parameter("3.weight").detach()
    assert moment is not None

    def error(method: Any) -> float:
        edit = encoded(method, "3.weight")
        delta = (edit.format.decode(edit.parts) - weight).flatten(1)
        return float(((delta @ moment) * delta).sum())

    assert error(Unstructured(sparsity=0.5)) < error(BlockSparse(sparsity=0.5)) < error(BlockSparse(sparsity=0.5, importance="magnitude"))


def test_a_block_takes_one_bit_of_the_mask() -> None:
    free, blocks = Masked(values=Affine(bits=4), sparsity=0.75), Masked(values=Affine(bits=4), sparsity=0.75, block=(4, 2))
    assert free.estimate((64, 64)) - blocks.estimate((64, 64)) == 64 * 64 // 8 * 7 // 8
    parts = blocks.encode(torch.randn(64, 64))
    assert blocks.nbytes(parts) == blocks.estimate((64, 64)) == 64 + 64 * 64 // 8 + 4 * 64


def test_what_is_no_block_or_does_not_divide_is_refused_and_not_offered() -> None:
    assert [m.label for m in BlockSparse.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(64, 64)))] == [
        "block_sparse",
        "block_sparse(sparsity=0.5)",
    ]
    assert BlockSparse.candidates(Site(id="a.weight", kind="weight", op="linear", shape=(30, 64))) == ()
    assert BlockSparse.candidates(Site(id="a.weight", kind="weight", op="conv2d", shape=(256, 1, 3, 3))) == ()
    with pytest.raises(UnsupportedSite, match="does not divide into blocks of 4 outputs by 1 inputs"):
        encoded(BlockSparse(), "5.weight")
    with pytest.raises(UnsupportedFormat, match="no block"):
        BlockSparse(outputs=1)
    with pytest.raises(UnsupportedFormat, match="take one or the other"):
        Masked(sparsity=0.5, n=2, m=4, block=(4, 1))
