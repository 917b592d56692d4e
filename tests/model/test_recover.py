"""Distillation: what it reaches, and what students share."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.errors import UsageError
from slimline.model import recover
from slimline.model.augment import Augmentation
from slimline.model.recover import Answers, Distillation, attention_map, distil, learning_rate, to_training
from slimline.numerics.divergence import distillation_loss

HOW = Distillation(steps=40, batch=16, learning_rate=0.02, augmentation=Augmentation(mix=True))


class Counting(nn.Module):
    """A teacher that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(6, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.layer(x)
        return out


def lesson() -> tuple[Counting, Samples]:
    torch.manual_seed(0)
    return Counting(), Samples.of(torch.randn(100, 6))


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 3)


def taught(seed: int, teacher: nn.Module, samples: Samples, how: Distillation = HOW, **more: Any) -> nn.Module:
    net = student(seed)
    assert distil(net, net.parameters(), teacher, samples, how, **more) == how.steps
    return net


def test_a_student_comes_closer_to_its_teacher_and_twice_to_the_same_place() -> None:
    teacher, samples = lesson()
    nets = student(1), taught(1, teacher, samples)
    with torch.no_grad():
        before, after = (float(distillation_loss(net(samples.args[0]), teacher(samples.args[0]), classes=True)) for net in nets)
    assert after < 0.2 * before
    for a, b in zip(taught(1, teacher, samples).parameters(), taught(1, teacher, samples).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_next_student_on_the_same_batches_is_told_the_same_answers_without_asking() -> None:
    teacher, samples = lesson()
    alone = taught(2, teacher, samples)
    answers = Answers()
    taught(1, teacher, samples, answers=answers)
    asked = teacher.calls
    beside = taught(2, teacher, samples, answers=answers)
    assert teacher.calls == asked
    for a, b in zip(alone.parameters(), beside.parameters(), strict=True):
        assert torch.equal(a, b)


def test_other_batches_are_asked_about() -> None:
    teacher, samples = lesson()
    answers = Answers()
    taught(1, teacher, samples, answers=answers)
    for changed in ({"seed": 5}, {"batch": 8}, {"augmentation": Augmentation()}):
        asked = teacher.calls
        how = Distillation(**{"steps": 40, "batch": 16, "learning_rate": 0.02, "augmentation": Augmentation(mix=True), **changed})  # type: ignore[arg-type]
        taught(1, teacher, samples, how, answers=answers)
        assert teacher.calls == asked + how.steps
    asked = teacher.calls
    taught(1, teacher, samples[:50], how, answers=answers)
    assert teacher.calls == asked + how.steps


def test_what_goes_beyond_the_memory_allowed_is_asked_again() -> None:
    teacher, samples = lesson()
    answers = Answers(limit=10 * 16 * 3 * 4)  # ten batches of three floats a sample
    taught(1, teacher, samples, answers=answers)
    asked = teacher.calls
    taught(2, teacher, samples, answers=answers)
    assert teacher.calls == asked + HOW.steps - 10


def test_it_stops_when_told() -> None:
    teacher, samples = lesson()
    net = student(1)
    left = iter([False, False, True])
    assert distil(net, net.parameters(), teacher, samples, HOW, stop=lambda: next(left)) == 2


@pytest.mark.parametrize("classes", [True, False])
def test_training_brings_values_back_and_leaves_a_shift_of_class_scores(classes: bool) -> None:
    """A student whose outputs are all larger by one gives the same classes, and other vectors."""
    torch.manual_seed(0)
    teacher, samples = nn.Linear(8, 6).eval(), Samples.of(torch.randn(256, 8))
    net = copy.deepcopy(teacher)
    with torch.no_grad():
        net.bias += 1.0
    how = Distillation(steps=200, batch=64, learning_rate=0.02, weight_decay=0.0, classes=classes)
    assert distil(net, net.parameters(), teacher, samples, how) == 200
    left = float((net.bias - teacher.bias).detach().abs().mean())
    assert left == pytest.approx(1.0, abs=0.05) if classes else left < 0.1


class Seeing(nn.Module):
    """Two convolutions of ``width`` channels and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return out


def looked_at(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = net.get_submodule("second").register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        net(x)
    hook.remove()
    return attention_map(seen[0])


def test_a_narrower_student_learns_where_its_teacher_looks() -> None:
    torch.manual_seed(0)
    teacher, samples = Seeing(12).eval(), Samples.of(torch.randn(64, 1, 6, 6))
    apart = {}
    for attention in ((), ("second",)):
        torch.manual_seed(1)
        net = Seeing(6)
        how = Distillation(steps=60, batch=32, learning_rate=0.02, attention=attention)
        distil(net, net.parameters(), teacher, samples, how, modules=net)
        apart[attention] = float((looked_at(net, samples.args[0]) - looked_at(teacher, samples.args[0])).square().sum(1).mean())
    assert apart["second",] < 0.5 * apart[()]


def test_attention_maps_of_sequences_are_over_their_positions() -> None:
    found = attention_map(torch.randn(3, 5, 7))
    assert found.shape == (3, 5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


class Moving(nn.Linear):
    """A layer that says where it is sent, and stays."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.sent: list[str] = []

    def to(self, device: str) -> Moving:  # type: ignore[override]
        self.sent.append(device)
        return self


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    teacher, samples = lesson()
    with pytest.raises(UsageError, match="--train-device cuda: this PyTorch has no CUDA device"):
        taught(1, teacher, samples, dataclasses.replace(HOW, device="cuda"))


def test_student_teacher_and_batches_go_to_the_gpu_and_come_back_also_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is moved and when; nothing runs on a GPU here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    moved: list[tuple[int, str]] = []
    monkeypatch.setattr(recover, "_moved", lambda samples, device: (moved.append((len(samples), device)), samples)[1])
    how = dataclasses.replace(HOW, device="cuda", steps=2)
    student, teacher, samples = Moving(), Moving(), lesson()[1]
    before = student.weight.detach().clone()
    distil(student, student.parameters(), teacher, samples, how)
    assert student.sent == teacher.sent == ["cuda", "cpu"] and moved == [(16, "cuda")] * 4 and not torch.equal(before, student.weight)

    def fails(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(student, student.parameters(), teacher, samples, how, on_step=fails)
    assert student.sent[-1] == teacher.sent[-1] == "cpu"
    with pytest.raises(UsageError, match="function cannot be moved"):
        distil(lambda x: student(x), student.parameters(), teacher, samples, how)


def test_targets_move_with_their_inputs() -> None:
    samples = Samples((torch.ones(2, 3),), {"mask": torch.ones(2)}, {"label": torch.zeros(2)})
    there = recover._moved(samples, "meta")  # type: ignore[arg-type]
    assert {t.device.type for t in (*there.tensors, there.targets["label"])} == {"meta"}


def test_in_training_batch_norms_gather_and_dropout_is_off() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    to_training(net)
    x = torch.randn(32, 6) + 5
    before = net[1].running_mean.clone()  # type: ignore[operator]
    torch.testing.assert_close(net(x), net(x))
    assert not torch.equal(net[1].running_mean, before)  # type: ignore[arg-type]


def test_models_that_are_normed_by_layers_learn_at_a_tenth_of_the_rate() -> None:
    transformer = nn.TransformerEncoderLayer(8, 2, 16)
    usual = Distillation(steps=0).learning_rate
    assert learning_rate(transformer) == pytest.approx(0.1 * usual) and learning_rate(nn.Linear(2, 2)) == usual
    assert learning_rate(nn.Sequential(transformer, nn.BatchNorm1d(8))) == usual
