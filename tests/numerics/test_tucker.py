"""Tucker-2 and CP factors, and ranks from the spectrum."""

from __future__ import annotations

import math

import pytest
import torch

from slimline.numerics.tucker import cp, ranks_for, spectra, tucker2, vbmf_rank


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(first: torch.Tensor, middle: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The kernel that three convolutions in a row come to."""
    a, c = first[..., 0, 0], last[..., 0, 0]
    if middle.shape[1] == 1 and len(first) > 1:
        return torch.einsum("or,rkl,ri->oikl", c, middle[:, 0], a)
    return torch.einsum("or,rskl,si->oikl", c, middle, a)


def low_rank_kernel() -> torch.Tensor:
    """Of Tucker ranks 3 and 2."""
    return torch.einsum("or,rskl,si->oikl", random(12, 3), random(3, 2, 3, 3, seed=1), random(2, 8, seed=2))


def inputs(channels: int, kernel: int) -> torch.Tensor:
    """Correlated unfolded inputs ``[rows, channels kernel]``."""
    mixed = random(600, channels * kernel) @ random(channels * kernel, channels * kernel, seed=3)
    return mixed * torch.logspace(0, -1.5, channels).repeat_interleave(kernel)


def output_error(weight: torch.Tensor, factors: tuple[torch.Tensor, ...], x: torch.Tensor) -> float:
    difference = (product(*factors) - weight).flatten(1)  # type: ignore[arg-type]
    return float((x @ difference.T).norm() / (x @ weight.flatten(1).T).norm())


def test_a_kernel_of_the_ranks_is_reproduced() -> None:
    w = low_rank_kernel()
    torch.testing.assert_close(product(*tucker2(w, (3, 2))), w, rtol=1e-2, atol=1e-2)


def test_a_sum_of_components_is_found_again() -> None:
    w = torch.einsum("or,ri,rk->oik", random(12, 3), random(3, 8, seed=1), random(3, 9, seed=2)).reshape(12, 8, 3, 3)
    assert float((product(*cp(w, 3)) - w).norm() / w.norm()) < 0.02


@pytest.mark.parametrize("blocks", [False, True], ids=["all inputs", "blocks"])
def test_known_inputs_make_the_outputs_closer(blocks: bool) -> None:
    w, x = random(12, 8, 3, 3), inputs(8, 9)
    moment = x.T @ x / len(x)
    if blocks:
        cut = x.reshape(len(x), 8, 9)
        moment = torch.einsum("nik,nil->ikl", cut, cut) / len(x)
    for factor in (lambda m: tucker2(w, (6, 4), m), lambda m: cp(w, 16, m)):
        plain, minded = output_error(w, factor(None), x), output_error(w, factor(moment), x)
        assert minded < plain if blocks else minded < 0.8 * plain


def test_the_energy_that_ranks_leave_out_bounds_the_error() -> None:
    w = random(12, 8, 3, 3)
    outputs, channels = spectra(w)
    lost = (outputs[6:].sum() + channels[4:].sum()) / outputs.sum()
    error = float((product(*tucker2(w, (6, 4))) - w).norm() / w.norm())
    assert error**2 <= float(lost) + 1e-6
    assert float(outputs.sum()) == pytest.approx(float(w.square().sum()), rel=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_chosen_ranks_keep_to_the_share_and_follow_the_spectrum(share: float) -> None:
    shape = (64, 32, 3, 3)
    few_inputs = (torch.ones(64), torch.cat([torch.ones(8), torch.zeros(24)]))
    ranks = ranks_for(shape, few_inputs, share)
    assert ranks is not None
    assert ranks[1] <= 8
    assert ranks[1] * 32 + ranks[0] * ranks[1] * 9 + ranks[0] * 64 <= share * math.prod(shape)
    assert ranks_for((4, 4, 3, 3), (torch.ones(4), torch.ones(4)), 0.1) is None


def test_noise_has_no_rank() -> None:
    assert vbmf_rank(random(30, 50)) == 0
    assert vbmf_rank(random(50, 4) @ random(4, 30, seed=1) + 0.05 * random(50, 30, seed=2)) == 4
