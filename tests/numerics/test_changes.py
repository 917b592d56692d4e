"""Answers that are expected to change, where few samples were seen, and what is lost with each."""

from __future__ import annotations

import pytest
import torch

from slimline.numerics.changes import believed, expected_changes, likely_drop, lost_per_change, temperature


def drawn(count: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = 3 * torch.randn(count, 100, generator=generator)
    return reference + noise * torch.randn(count, 100, generator=generator), reference


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_few_samples_tell_more_than_their_own_changes(noise: float) -> None:
    """Against what changes on 20,000 others, over 40 draws of 100 samples: two thirds of the squared error of the count at most, about the right share."""
    scores, reference = drawn(20_000, 0, noise)
    truth = float((scores.argmax(1) != reference.argmax(1)).double().mean())
    draws = [drawn(100, seed, noise) for seed in range(1, 41)]
    counted = torch.tensor([float((a.argmax(1) != b.argmax(1)).double().mean()) for a, b in draws])
    expected = torch.tensor([expected_changes(a, b) for a, b in draws])
    assert float((expected - truth).square().mean()) < 0.67 * float((counted - truth).square().mean())
    assert float(expected.mean()) == pytest.approx(truth, rel=0.1)


def test_probabilities_change_as_their_logits_do() -> None:
    scores, reference = drawn(200, 0, 0.5)
    assert expected_changes(scores.softmax(1), reference.softmax(1)) == pytest.approx(
        expected_changes(scores.log_softmax(1), reference.log_softmax(1)), abs=1e-3
    )


@pytest.mark.parametrize("overconfident", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_which_the_labels_were_drawn_with(overconfident: float) -> None:
    _, reference = drawn(20_000, 0, 0.0)
    labels = torch.distributions.Categorical(logits=reference / overconfident).sample()
    assert temperature(reference, labels) == pytest.approx(overconfident, rel=0.05)
    assert temperature(reference.softmax(1), labels) == pytest.approx(overconfident, rel=0.05)


def test_what_is_likely_lost_scatters_less_than_what_is_seen_to_be_lost() -> None:
    """Labels drawn from what the original believes, once it is calibrated; 40 draws of 1,000 samples, each with its own temperature, against 50,000 others."""

    def lost(count: int, seed: int) -> tuple[float, float]:
        scores, reference = drawn(count, seed, 1.0)
        torch.manual_seed(seed)
        labels = torch.distributions.Categorical(logits=reference / 2).sample()
        right, before = ((t.argmax(1) == labels).double().mean() for t in (scores, reference))
        return float(before - right), likely_drop(scores, reference, temperature(reference, labels))

    truth, of_all = lost(50_000, 1)
    seen, likely = (torch.tensor(draws) for draws in zip(*(lost(1_000, seed) for seed in range(2, 42)), strict=True))
    assert of_all == pytest.approx(truth, rel=0.15)
    assert float((likely - truth).square().mean()) < 0.3 * float((seen - truth).square().mean())


def test_what_changes_no_answer_loses_nothing() -> None:
    scores, reference = drawn(100, 0, 0.0)
    assert likely_drop(scores, reference, 2.0) == 0.0


def test_of_many_samples_a_part_is_enough() -> None:
    scores, reference = drawn(5_000, 0, 0.5)
    few = expected_changes(scores[:500], reference[:500])
    assert expected_changes(scores, reference) == pytest.approx(few, rel=0.1)


def test_candidates_that_say_the_same_count_once() -> None:
    assert lost_per_change([(-0.02, 0.1)] * 20, 125) == pytest.approx(lost_per_change([(-0.02, 0.1)], 125))
    assert lost_per_change([(0.03, 0.06), *[(0.0, 0.0)] * 20], 5_000) == pytest.approx(lost_per_change([(0.03, 0.06)], 5_000)), (
        "who changes nothing says nothing"
    )


def test_a_drop_is_believed_where_chance_does_not_explain_it() -> None:
    assert believed(0.2, 0.3, 0.3, samples=125, allowed=0.01) > 0.09, "a fifth is lost whatever changed answers usually lose"
    assert believed(-0.02, 0.05, 0.3, samples=125, allowed=0.01) == pytest.approx(0.015)
    assert believed(-0.02, 0.05, 0.3, samples=50_000, allowed=0.01) == -0.02


def test_what_few_answers_say_is_drawn_towards_the_usual() -> None:
    lucky = [(-0.05, 0.2), (0.0, 0.1)]
    assert lost_per_change(lucky, 60) > 0.2
    assert lost_per_change(lucky, 60_000) < 0.01
    assert lost_per_change([(0.15, 0.3)], 60_000) == pytest.approx(0.5, rel=0.01)
    assert lost_per_change([(0.7, 0.9)], 60_000) == pytest.approx(1 / 3), "another network says nothing about one that changes little"
