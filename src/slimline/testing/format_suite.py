"""What every format promises, as tests that anyone can run over theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from slimline.core.formats import Affine, Format, Product
from slimline.errors import UnsupportedFormat


class FormatSuite:
    """Subclass it under pytest and set ``formats``; or call a check with one format.

    ``shapes``: the weights that each format must take. ``refused``: (format, shape) that it must refuse.

    Example:
        >>> from slimline.core.formats import Affine
        >>> FormatSuite().test_size_is_the_estimate(Affine(bits=4))
    """

    formats: ClassVar[Sequence[Format]] = ()
    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((4, 8), (3, 2, 3, 4))
    refused: ClassVar[Sequence[tuple[Format, tuple[int, ...]]]] = ()

    @classmethod
    def pytest_generate_tests(cls, metafunc: Any) -> None:
        """One test for each format."""
        if "format" in metafunc.fixturenames:
            metafunc.parametrize("format", cls.formats, ids=[f.name for f in cls.formats])

    def weights(self) -> list[torch.Tensor]:
        """One weight of each shape, with a channel of zeros and one of large values."""
        found = []
        for seed, shape in enumerate(self.shapes):
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            weight[0], weight[1] = 0.0, weight[1] * 30
            found.append(weight)
        return found

    def test_name_is_short_and_there(self, format: Format) -> None:
        assert 0 < len(format.name) <= 24

    def test_decode_gives_shape_and_dtype_of_the_weight(self, format: Format) -> None:
        for weight in self.weights():
            back = format.decode(format.encode(weight))
            assert back.shape == weight.shape and back.dtype == weight.dtype

    def test_encode_leaves_the_weight_alone_and_shares_no_storage(self, format: Format) -> None:
        for weight in self.weights():
            before = weight.clone()
            parts = format.encode(weight)
            assert torch.equal(weight, before)
            assert all(p.data_ptr() != weight.data_ptr() for p in parts.values())

    def test_encode_gives_the_same_parts_twice(self, format: Format) -> None:
        for weight in self.weights():
            first, second = format.encode(weight), format.encode(weight)
            assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)

    def test_zero_stays_zero(self, format: Format) -> None:
        for weight in self.weights():
            zero = torch.zeros_like(weight)
            assert torch.equal(format.decode(format.encode(zero)), zero)

    def test_project_equals_decode_of_encode(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            # Equal up to rounding: the two multiply in a different order.
            torch.testing.assert_close(format.project(weight, parts), format.decode(parts), rtol=1e-6, atol=1e-7)

    def test_what_is_representable_is_projected_onto_itself(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            back = format.decode(parts)
            torch.testing.assert_close(format.project(back, parts), back, rtol=1e-6, atol=1e-7)

    def test_gradients_pass_straight_through_project(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            inside = (weight * 0.5).requires_grad_(True)  # nothing at a limit, where a clamp has no gradient
            format.project(inside, parts).sum().backward()
            assert inside.grad is not None
            kept = parts.get("mask", torch.ones_like(weight))  # what is masked stays zero and learns nothing
            torch.testing.assert_close(inside.grad, kept.to(weight.dtype))

    def test_assign_under_its_own_tables_changes_nothing(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            again = format.assign(weight, parts)
            assert again.keys() == parts.keys() and all(torch.equal(again[k], parts[k]) for k in parts)

    def test_tables_and_codes_are_among_the_parts(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            run = format.d if isinstance(format, Product) else 1
            assert parts[format.codes].numel() * run == weight.numel() and set(format.trained) <= set(parts)

    def test_its_integers_decode_to_the_same(self, format: Format) -> None:
        for weight in self.weights():
            parts = format.encode(weight)
            if format.grid is not None:
                torch.testing.assert_close(format.grid.decode(format.integers(parts)), format.decode(parts))
            else:
                assert not isinstance(format, Affine)

    def test_size_is_the_estimate(self, format: Format) -> None:
        for weight in self.weights():
            assert format.nbytes(format.encode(weight)) == format.estimate(tuple(weight.shape))

    def test_what_it_cannot_take_is_refused(self) -> None:
        for format, shape in self.refused:
            assert _refuses(format, shape), f"{format.name} encoded a weight of shape {shape}"


def _refuses(format: Format, shape: tuple[int, ...]) -> bool:
    """Whether it says no, naming itself."""
    try:
        format.encode(torch.ones(shape))
    except UnsupportedFormat as refusal:
        return format.name in refusal.message
    return False
