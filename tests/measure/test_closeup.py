"""A close look at two sets of outputs."""

from __future__ import annotations

import torch

from slimline.core.samples import Samples
from slimline.measure.closeup import calibration, close_up, disturbed
from slimline.measure.quality import cosine, top1


def test_lost_and_won_samples_have_the_indices_of_the_users_split() -> None:
    truth = torch.tensor([0, 1, 2, 0])
    original, compressed = torch.eye(3)[[0, 1, 0, 0]], torch.eye(3)[[0, 2, 2, 1]]
    seen = close_up(top1, original, compressed, truth, {"light": ["day", "day", "night", "night"]}, torch.tensor([5, 7, 9, 11]))
    assert (seen.lost, seen.won, seen.before, seen.after) == ((7, 11), (9,), 0.75, 0.5)
    assert {g.label: g.observed for g in seen.slices} == {"light: day": 0.5, "light: night": 0.0}
    assert seen.classes[0].label == "1" and {g.of for g in seen.classes} == {3}


def test_a_metric_without_right_and_wrong_has_no_lost_samples() -> None:
    one = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    seen = close_up(cosine, one, one + 0.1, one, {})
    assert (seen.lost, seen.classes, seen.calibration, seen.samples) == ((), (), None, 6)
    assert calibration(one, one, torch.zeros(6)) is None  # no labels


def test_disturbances_are_of_the_first_input_alone_and_stop_when_told() -> None:
    seen: list[Samples] = []

    def both(samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(samples)
        scores = samples.args[0].mean((1, 2, 3))[:, None] * torch.tensor([[1.0, -1.0]])
        return scores, scores.flip(1)

    mask = torch.ones(8, dtype=torch.long)
    samples = Samples((torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0)), mask), {}, torch.zeros(8, dtype=torch.long))
    found = disturbed(both, top1, samples)
    assert [d.name for d in found] == ["", "noise", "blur", "contrast"]
    assert all((d.before, d.after, d.samples) == (1.0, 0.0, 8) for d in found)
    assert all(torch.equal(s.args[1], mask) for s in seen) and not torch.equal(seen[1].args[0], seen[0].args[0])
    assert disturbed(both, top1, samples, over=lambda: True) == ()
