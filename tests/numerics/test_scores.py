"""Models that end in a softmax are judged and trained as those that end before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from slimline.numerics.divergence import distillation_loss, divergence, own_divergence
from slimline.numerics.scores import are_probabilities, logits
from slimline.sources.task_file import TaskFile

DRAW = torch.Generator().manual_seed(0)
SCORES, OTHER = (3 * torch.randn(8, 5, generator=DRAW) for _ in range(2))


def test_only_rows_that_sum_to_one_are_probabilities() -> None:
    assert are_probabilities(SCORES.softmax(1)) and not are_probabilities(SCORES) and not are_probabilities(SCORES.softmax(1) * 0.9)
    assert are_probabilities(torch.rand(2, 3, 4, 4).softmax(1))
    torch.testing.assert_close(logits(SCORES.softmax(1), True).softmax(1), SCORES.softmax(1))
    assert logits(SCORES, False) is SCORES


@pytest.mark.parametrize("measure", [divergence, distillation_loss])
def test_probabilities_lose_what_their_scores_lose(measure: object) -> None:
    assert callable(measure)
    torch.testing.assert_close(measure(SCORES.softmax(1), OTHER.softmax(1), classes=True), measure(SCORES, OTHER, classes=True), rtol=1e-4, atol=1e-5)


def test_their_own_divergence_has_the_same_gradient() -> None:
    gradients = []
    for softmax in (False, True):
        x = SCORES.clone().requires_grad_()
        own_divergence(x.softmax(1) if softmax else x, torch.Generator().manual_seed(1), classes=True).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_the_default_loss_takes_either(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text("import torch\ndef data(split):\n    return torch.zeros(8, 5), torch.arange(8) % 5\n")
    task, labels = TaskFile.load(str(file)), torch.arange(8) % 5
    for outputs in (SCORES, SCORES.softmax(1)):
        found = task.loss(outputs, labels)
        assert found is not None
        torch.testing.assert_close(found, F.cross_entropy(SCORES, labels))
