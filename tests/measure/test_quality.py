from __future__ import annotations

import math

import pytest
import torch

from slimline.errors import DataError, UsageError
from slimline.measure.quality import (
    are_class_scores,
    auroc,
    chosen,
    cosine,
    default,
    evaluate,
    f1,
    first_tensor,
    named,
    neg_mse,
    pixel_accuracy,
    precision,
    recall,
    top1,
    top5,
)

MAKE = torch.Generator().manual_seed(0)
SCORES = torch.randn(60, 7, generator=MAKE)
LABELS = torch.randint(0, 7, (60,), generator=MAKE)


def slow_counts(scores: torch.Tensor, labels: torch.Tensor, c: int) -> tuple[int, int, int]:
    """True positives, guesses and occurrences of one class, one sample at a time."""
    right = guessed = true = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        guess = max(range(len(row)), key=row.__getitem__)
        right += guess == c == label
        guessed += guess == c
        true += label == c
    return right, guessed, true


def test_top1_and_top5_count_where_the_label_ranks() -> None:
    order = [sorted(range(7), key=lambda c: -row[c]) for row in SCORES.tolist()]
    assert top1(SCORES, LABELS).tolist() == [float(o[0] == y) for o, y in zip(order, LABELS.tolist(), strict=True)]
    assert top5(SCORES, LABELS).tolist() == [float(y in o[:5]) for o, y in zip(order, LABELS.tolist(), strict=True)]


def test_top5_of_fewer_classes_is_always_right() -> None:
    assert top5(SCORES[:, :3], LABELS.clamp(max=2)).mean() == 1


def test_macro_averages_are_those_of_one_class_after_the_other() -> None:
    rows = [slow_counts(SCORES, LABELS, c) for c in range(7)]
    rows = [r for r in rows if r[2]]
    assert precision(SCORES, LABELS) == pytest.approx(sum(r / max(g, 1) for r, g, _ in rows) / len(rows))
    assert recall(SCORES, LABELS) == pytest.approx(sum(r / t for r, _, t in rows) / len(rows))
    assert f1(SCORES, LABELS) == pytest.approx(sum(2 * r / (g + t) for r, g, t in rows) / len(rows))


def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_half() -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.3])
    labels = torch.tensor([0, 0, 1, 1, 1])
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1].tolist() for n in scores[labels == 0].tolist()]
    expected = sum(pairs) / len(pairs)
    assert auroc(scores, labels) == pytest.approx(expected)
    assert auroc(scores[:, None], labels) == pytest.approx(expected)
    assert auroc(torch.stack([torch.zeros(5), scores], 1), labels) == pytest.approx(expected)


def test_auroc_of_many_classes_is_the_mean_of_one_against_the_rest() -> None:
    areas = [auroc(SCORES[:, c], LABELS.eq(c).long()) for c in range(7)]
    assert auroc(SCORES, LABELS) == pytest.approx(sum(areas) / 7)


def test_pixel_accuracy_is_each_pictures_share_of_right_pixels() -> None:
    scores, labels = torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, dtype=torch.long)
    labels[1, 0, 0] = 2
    assert pixel_accuracy(scores, labels).tolist() == [1.0, 0.75]


def test_cosine_ignores_scale_and_neg_mse_is_zero_at_best() -> None:
    assert torch.allclose(cosine(SCORES, 3 * SCORES), torch.ones(60))
    assert cosine(SCORES, -SCORES).mean() == pytest.approx(-1)
    assert neg_mse(SCORES, SCORES).sum() == 0
    assert neg_mse(torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [-1.0, -1.0]


def test_outputs_may_be_any_pytree_with_a_float_tensor() -> None:
    outputs = {"logits": SCORES, "hidden": [SCORES]}
    assert first_tensor(outputs) is SCORES
    assert torch.equal(top1(outputs, {"labels": LABELS}), top1(SCORES, LABELS))
    with pytest.raises(DataError, match="no floating-point"):
        first_tensor({"ids": LABELS})


def test_default_metric_follows_the_shapes() -> None:
    assert default(SCORES, LABELS)[0] == "top1"
    assert default(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))[0] == "pixel_accuracy"
    assert default(SCORES, None)[0] == "cosine"


@pytest.mark.parametrize("targets", [torch.zeros(60), torch.zeros(60, 7), (LABELS, LABELS), "text"])
def test_targets_without_a_default_metric_ask_for_one(targets: object) -> None:
    with pytest.raises(DataError, match="metric"):
        default(SCORES, targets)


def test_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="top1, top5"):
        named("accuracy")
    assert named("f1")(SCORES, LABELS) == f1(SCORES, LABELS)


def test_quality_is_the_mean_of_per_sample_scores_or_the_float_itself() -> None:
    quality, scores = evaluate(top1, SCORES, LABELS)
    assert scores is not None
    assert quality == pytest.approx(float(scores.mean()))
    assert evaluate(lambda o, t: 0.5, SCORES, LABELS) == (0.5, None)
    assert evaluate(lambda o, t: torch.tensor(0.5), SCORES, LABELS) == (0.5, None)


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, torch.full((60,), -math.inf), "good", torch.zeros(2, 2), None])
def test_a_metric_that_returns_no_number_is_a_data_error(wrong: object) -> None:
    with pytest.raises(DataError, match="metric"):
        evaluate(lambda o, t: wrong, SCORES, LABELS)  # type: ignore[arg-type, return-value]


def test_scores_of_classes_are_not_taken_for_those_of_samples() -> None:
    with pytest.raises(DataError, match="returned 7 scores for 60 samples"):
        evaluate(lambda outputs, targets: torch.zeros(7), {"logits": SCORES}, LABELS)


def test_a_name_goes_before_the_tasks_own_metric_and_that_before_the_default() -> None:
    class Own:
        def metric(self, outputs: object, targets: object) -> float:
            return 0.5

    class Bare:
        has_metric = False

    def never() -> object:
        raise AssertionError("outputs are made for the default alone")

    own = Own()
    name, function = chosen("f1", own, never, LABELS)
    assert name == "f1" and function(SCORES, LABELS) == f1(SCORES, LABELS)
    assert chosen("", own, never, LABELS) == chosen("metric", own, never, LABELS) == ("metric", own.metric)
    assert chosen("", Bare(), lambda: SCORES, LABELS) == ("top1", top1) and chosen("", Bare(), lambda: SCORES, None) == ("cosine", cosine)


VECTORS = torch.nn.functional.normalize(SCORES, dim=1)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "expected"),
    [
        ("top1", SCORES, LABELS, True),
        ("auroc", SCORES, LABELS, True),
        ("metric", SCORES, LABELS, True),
        ("metric", SCORES.reshape(5, 7, 4, 3), LABELS.reshape(5, 4, 3), True),
        ("cosine", SCORES.softmax(1), None, True),
        ("cosine", VECTORS, None, False),
        ("metric", VECTORS, None, False),
        ("metric", VECTORS, torch.rand(60), False),
        ("metric", VECTORS, VECTORS, False),
        ("neg_mse", SCORES, SCORES, False),
        ("metric", SCORES.reshape(5, 3, 4, 7), None, False),
    ],
)
def test_outputs_are_class_scores_by_metric_labels_or_their_sum(name: str, outputs: torch.Tensor, targets: torch.Tensor | None, expected: bool) -> None:
    assert are_class_scores(name, (outputs,), targets) is expected


@pytest.mark.parametrize(("name", "outputs", "targets", "says"), [
    ("neg_mse", SCORES, torch.zeros(60), r"--metric neg_mse does not fit outputs \(60, 7\) and targets \(60,\): .*Give another"),
    ("top1", SCORES[:, 0], LABELS, r"--metric top1 does not fit outputs \(60,\) and targets \(60,\)"),
    ("f1", SCORES, torch.rand(60), "--metric f1 does not fit"),
    ("cosine", SCORES, LABELS, "targets hold no floating-point tensor.*top1"),
])  # fmt: skip
def test_a_built_in_metric_that_does_not_fit_is_named_with_the_shapes(name: str, outputs: torch.Tensor, targets: torch.Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        named(name)(outputs, targets)
