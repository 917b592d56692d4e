"""How often the gate lets a model through whose true change is exactly what is allowed: simulated models, judged by `slimline check`'s own functions.

    python benchmarks/gate.py [--models 200]

Each row draws as many holdouts (or rounds of timing) from a population that is known, so that the true drop is known; that is the allowance. A gate that keeps
its word passes at most 5 % of them, and says "fail" of at most 5 %. Ends with 1 where one of both is more by over 2.33 standard errors (1 % of all right gates would be).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from slimline.core.budget import Drop
from slimline.measure.certify import bootstrap_interval, drop_interval
from slimline.measure.classes import class_drops
from slimline.measure.quality import f1
from slimline.project.evidence import Drops, Evidence, Figures
from slimline.project.file import BudgetEntry, Gate, Item, ModelEntry
from slimline.project.gate import findings, verdict

LEVEL = 0.05
FIGURES = Figures(size=1000, download=900, memory=2000, macs=100)
POPULATION = 200_000
Draw = np.random.Generator


def outcome(drops: Drops, allowed: float, *, ratios: tuple[float, ...] = (1.0,) * 11, class_allowed: float | None = None) -> str:
    """The verdict of the whole gate on a model whose drops against the original and the accepted artefact are ``drops``."""
    budget = BudgetEntry(max_drop=Drop(value=allowed))
    item = Item("net/onnxruntime/small", Path(), Path("build"), ModelEntry(task="task.py", budgets={"small": budget}), "onnxruntime", budget, 1)
    evidence = Evidence(
        FIGURES,
        FIGURES,
        locked_at_hand=True,
        quality=0.9,
        against_original=drops,
        against_locked=drops,
        rounds=tuple((1.0, r) for r in ratios),
        recorded_ms=1.0,
    )
    gate = Gate(drop=Drop(value=allowed), class_drop=None if class_allowed is None else Drop(value=class_allowed))
    return verdict(findings(item, gate, evidence, has_lock=True))


def answers(samples: int, differing: float, allowed: float) -> Callable[[Draw], str]:
    """Right or wrong answers, of which a share ``differing`` changes."""

    def model(draw: Draw) -> str:
        lost, won, _ = draw.multinomial(samples, [(differing + allowed) / 2, (differing - allowed) / 2, 1 - differing])
        a, b = torch.ones(samples), torch.ones(samples)
        b[:lost] = 0
        a[lost : lost + won] = 0
        return outcome(Drops(drop_interval(a, b, allowed)[0]), allowed)

    return model


def graded(samples: int, rare: float) -> Callable[[Draw], str]:
    """Scores in [0, 1] that change a little everywhere, and are lost altogether on a share ``rare`` of samples."""

    def model(draw: Draw) -> str:
        a = torch.from_numpy(draw.uniform(0.5, 1.0, samples))
        b = (a + torch.from_numpy(draw.uniform(-0.02, 0.02, samples))).clamp(0, 1)
        b[torch.from_numpy(draw.random(samples) < rare)] = 0
        return outcome(Drops(drop_interval(a, b, allowed)[0]), allowed)

    draw = np.random.default_rng(1)
    a = draw.uniform(0.5, 1.0, 20 * POPULATION)
    allowed = float(a.mean() - (1 - rare) * np.clip(a + draw.uniform(-0.02, 0.02, a.size), 0, 1).mean())
    return model


def whole(samples: int) -> Callable[[Draw], str]:
    """Macro F1 of four classes, the rarest of which is 5 %: one number for all samples, by the bootstrap."""
    draw = np.random.default_rng(1)
    truth = draw.choice(4, POPULATION, p=[0.5, 0.3, 0.15, 0.05])

    def guess(wrong: float) -> torch.Tensor:
        return torch.from_numpy(np.where(draw.random(POPULATION) < wrong, draw.integers(0, 4, POPULATION), truth))

    first = guess(0.1)
    second = torch.where(torch.from_numpy(draw.random(POPULATION) < 0.04), torch.from_numpy(draw.integers(0, 4, POPULATION)), first)
    labels, scores = torch.from_numpy(truth), [torch.eye(4)[g] for g in (first, second)]
    allowed = f1(scores[0], labels) - f1(scores[1], labels)

    def model(draw: Draw) -> str:
        index = torch.from_numpy(draw.integers(0, POPULATION, samples))
        seed = int(draw.integers(2**31))
        return outcome(Drops(bootstrap_interval(f1, scores[0][index], scores[1][index], labels[index], allowed, seed)[0]), allowed)

    return model


def latency(noise: float) -> Callable[[Draw], str]:
    """The latency is exactly 10 % more, the ratios of the rounds scatter around it (as many above as below)."""
    same = Drops(drop_interval(torch.ones(1000), torch.ones(1000), 0.5)[0])
    return lambda draw: outcome(same, 0.5, ratios=tuple(1.1 * draw.lognormal(0, noise, 11)))


def classes(ruined: int) -> Callable[[Draw], str]:
    """Of ten classes with 100 samples each, ``ruined`` lost exactly 10 points, as allowed; the others nothing."""
    labels = torch.arange(1000) % 10

    def model(draw: Draw) -> str:
        lost = torch.from_numpy(draw.random(1000) < 0.1) & (labels < ruined)
        a, b = torch.ones(1000), torch.where(lost, 0.0, 1.0)
        return outcome(Drops(drop_interval(a, b, 0.5)[0], class_drops(a, b, labels)), 0.5, class_allowed=0.1)

    return model


def cases() -> Iterator[tuple[str, Callable[[Draw], str]]]:
    for samples, differing, allowed in ((300, 0.03, 0.02), (1_000, 0.05, 0.02), (1_000, 0.02, 0.01), (10_000, 0.1, 0.01)):
        yield f"right or wrong, {samples:,} samples, {differing:.0%} differ, {100 * allowed:g} points", answers(samples, differing, allowed)
    for samples, rare in ((300, 0.01), (2_000, 0.01)):
        yield f"graded scores, {samples:,} samples, {rare:.0%} lost altogether", graded(samples, rare)
    for samples in (300, 1_000):
        yield f"macro F1, {samples:,} samples", whole(samples)
    for noise in (0.01, 0.1):
        yield f"latency, rounds scatter by {noise:.0%}", latency(noise)
    for ruined in (1, 10):
        yield f"{ruined} of 10 classes at their allowance", classes(ruined)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    count = parser.parse_args().models
    limit = LEVEL + 2.33 * (LEVEL * (1 - LEVEL) / count) ** 0.5
    print(f"{count} models each; at most {limit:.1%} may pass, and at most as many be called worse than allowed\n")
    print(f"{'exactly at the allowance':64} {'pass':>7} {'fail':>7} {'inconclusive':>13}")
    beyond = 0
    for number, (name, model) in enumerate(cases()):
        draw = np.random.default_rng(number)  # rows that are drawn alike would err alike
        found = Counter(model(draw) for _ in range(count))
        wrong = max(found["pass"], found["fail"]) > limit * count
        beyond += wrong
        print(
            f"{name:64} {found['pass'] / count:7.1%} {found['fail'] / count:7.1%} {found['inconclusive'] / count:13.1%}{'  BEYOND' if wrong else ''}",
            flush=True,
        )
    return bool(beyond)


if __name__ == "__main__":
    sys.exit(main())
