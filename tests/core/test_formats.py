"""Formats: the conformance suite over the built-in ones, and what each does to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from slimline.core.formats import Affine, Codebook, Float, Masked, Product, format_of
from slimline.errors import UnsupportedFormat
from slimline.testing.format_suite import FormatSuite


class TestBuiltIn(FormatSuite):
    formats = (
        Float(),
        *(Affine(bits=b, granularity=g, group=4 if g == "per_group" else 0) for b in (2, 4, 8) for g in ("per_tensor", "per_channel", "per_group")),
        Affine(bits=8, axis=1),
        *(Codebook(k=k, values=v, zero=z) for k, v, z in ((2, Float(), False), (5, Float(), True), (16, Affine(), False), (16, Affine(axis=1), True))),
        *(Masked(values=v, sparsity=0.75) for v in (Float(), Affine(), Affine(bits=4), Codebook(k=8, values=Affine(), zero=True), Codebook(k=4, zero=True))),
        *(Masked.pattern(2, 4, v) for v in (Float(), Affine(), Affine(bits=4), Codebook(k=8, zero=True))),
        Masked.pattern(1, 2, Affine(axis=1), axis=0),
        Masked(values=Affine(bits=2), sparsity=0.25),
        *(Product(k=k, d=2, values=v) for k, v in ((4, Float()), (16, Affine()), (5, Affine(bits=4)))),
        Product(k=8, d=2, values=Affine(axis=1), axis=1),
        *(Masked(values=v, sparsity=0.75, block=(2, 2)) for v in (Float(), Affine(bits=4), Codebook(k=8, values=Affine(), zero=True))),
        Masked(values=Affine(bits=4, axis=1), sparsity=0.5, axis=0, block=(4, 1)),
    )
    shapes = ((4, 8), (2, 4, 3, 4))
    refused = (
        (Affine(bits=4, granularity="per_group", group=4), (3, 6)),
        (Masked.pattern(2, 4), (3, 6)),
        (Masked.pattern(2, 4), (8,)),
        (Masked(block=(2, 2)), (3, 6)),
        (Product(d=4), (3, 6)),
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_decode_is_the_nearest_point_of_the_grid(bits: int) -> None:
    format = Affine(bits=bits)
    weight = torch.randn(3, 20)
    parts = format.encode(weight)
    grid = torch.arange(-format.limit, format.limit + 1)
    for row, scale, back in zip(weight, parts["scale"], format.decode(parts), strict=True):
        nearest = (grid * scale)[(row[:, None] - grid * scale).abs().argmin(1)]
        torch.testing.assert_close(back, nearest)


def test_the_largest_magnitude_of_each_channel_is_exact() -> None:
    weight = torch.randn(4, 3, 3, 3)
    back = Affine(bits=4).decode(Affine(bits=4).encode(weight))
    torch.testing.assert_close(back.abs().flatten(1).amax(1), weight.abs().flatten(1).amax(1))


def test_int4_takes_half_a_byte_each_and_four_bytes_per_scale() -> None:
    assert Affine(bits=4).estimate((10, 7)) == 35 + 40
    assert Affine(bits=2, granularity="per_tensor").estimate((3, 3)) == 3 + 4
    assert Affine(bits=4, granularity="per_group", group=32).estimate((2, 64)) == 64 + 16


def test_a_group_without_per_group_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="group size goes with per_group"):
        Affine(group=32)
    with pytest.raises(UnsupportedFormat, match="group size goes with per_group"):
        Affine(granularity="per_group")


def test_formats_compare_by_value_and_can_be_keys() -> None:
    assert {Affine(bits=4): 1}[Affine(bits=4)] == 1
    assert Affine(bits=4) != Affine(bits=4, axis=1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Masked(values=Affine(granularity="per_group", group=4)), "mostly zero"),
        (lambda: Masked(values=Codebook()), "entry 0 must be zero"),
        (lambda: Masked(n=4, m=4), "no pattern"),
        (lambda: Masked(n=2, m=0), "no pattern"),
        (lambda: Masked(n=2, m=8), "is a sparsity of 0.75"),
        (lambda: Affine(bits=4, reduce_range=True), "it frees one of 8"),
        (lambda: Codebook(k=16, values=Affine(bits=4)), "16 entries out of 15"),
        (lambda: Codebook(k=256, values=Affine()), "256 entries out of 255"),
        (lambda: Codebook(values=Affine(granularity="per_group", group=4)), "one or the other"),
    ],
)
def test_pairs_without_sense_are_refused_with_the_reason(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(UnsupportedFormat, match=reason):
        make()


def test_a_reduced_range_leaves_one_bit_free_and_takes_as_many_bytes() -> None:
    weight = torch.randn(4, 100)
    full, reduced = Affine(), Affine(reduce_range=True)
    parts = reduced.encode(weight)
    assert int(parts["values"].abs().max()) == 63 and int(full.encode(weight)["values"].abs().max()) == 127
    assert reduced.nbytes(parts) == full.nbytes(full.encode(weight)) and reduced.estimate((4, 100)) == full.estimate((4, 100))
    assert reduced.name == "int7"


def test_a_mask_costs_a_bit_each_and_only_kept_values_are_stored() -> None:
    assert Masked(values=Affine(), sparsity=0.75).estimate((8, 32)) == 256 // 8 + 64 + 8 * 4
    assert Masked(values=Affine(bits=4), sparsity=0.75).estimate((8, 32)) == 256 // 8 + 32 + 8 * 4
    assert Masked.pattern(2, 4).estimate((8, 32)) == 256 // 8 + 128 * 4
    assert Masked(values=Affine(bits=2), sparsity=0.25).estimate((8, 32)) == Affine(bits=2).estimate((8, 32)), "the mask would cost more than it saves"


def test_a_codebook_of_eight_takes_three_bits_each() -> None:
    assert Codebook(k=8).estimate((8, 32)) == 3 * 256 // 8 + 8 * 4
    assert Codebook(k=8, values=Affine()).estimate((8, 32)) == 3 * 256 // 8 + 8 + 8 * 4


@pytest.mark.parametrize(("n", "m", "axis"), [(2, 4, 1), (4, 8, 1), (1, 4, 0)])
def test_a_pattern_keeps_the_largest_n_of_every_m_along_its_dimension(n: int, m: int, axis: int) -> None:
    weight = torch.randn(8, 16, 3)
    mask = Masked.pattern(n, m, axis=axis).encode(weight)["mask"].movedim(axis, -1)
    runs, sizes = mask.reshape(*mask.shape[:-1], -1, m), weight.abs().movedim(axis, -1).reshape(*mask.shape[:-1], -1, m)
    assert (runs.sum(-1) == n).all()
    assert (sizes.masked_fill(~runs, torch.inf).amin(-1) >= sizes.masked_fill(runs, 0).amax(-1)).all()


def test_k_means_finds_what_was_drawn_and_a_weight_may_change_its_entry() -> None:
    truth = torch.tensor([-1.0, 0.0, 1.25, 2.0])
    weight = truth[torch.randint(4, (20, 30))] + 0.01 * torch.randn(20, 30)
    format = Codebook(k=4)
    parts = format.encode(weight)
    torch.testing.assert_close(parts["codebook"].sort().values, truth, atol=0.01, rtol=0)
    assert torch.equal(format.assign(torch.full((2, 2), 1.9), parts)["indices"].unique(), parts["codebook"].argmax()[None].to(torch.uint8))


def test_an_entry_learns_from_the_sum_over_its_weights() -> None:
    format = Codebook(k=3)
    weight = torch.tensor([[0.0, 0.1, 5.0, 5.1, 5.2, 9.0]])
    parts = format.encode(weight)
    entries = parts["codebook"].requires_grad_(True)
    format.project(weight, {"codebook": entries}).mul(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])).sum().backward()
    assert entries.grad is not None and entries.grad.tolist() == [3.0, 28.0, 32.0]


@pytest.mark.parametrize("format", [Float(), Affine(bits=2), Codebook(k=5, values=Affine(bits=4)), Masked.pattern(2, 4, Codebook(zero=True))])
def test_formats_survive_json(format: Float | Affine | Codebook | Masked) -> None:
    assert format_of(json.loads(format.model_dump_json())) == format
