"""What a person sees of the best so far."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slimline.core.budget import Budget, Quantity
from slimline.core.progress import Best
from slimline.core.trial import Agreement, Latency, Measurement
from slimline.job.found import show_best


def measured(size: int, download: int, ms: float, quality: float | None) -> Measurement:
    return Measurement(
        size_bytes=size,
        download_bytes=download,
        download_codec="stored",
        memory_bytes=1,
        parameters=1,
        macs=1,
        latency_ms=Latency(median=ms, p95=ms, runs=1),
        quality=quality,
    )


def shown(
    budget: Budget, *made: Measurement, base: float | None = 0.9, with_latency: bool = True, samples: int | None = None, changed: float = 0.0
) -> list[Best]:
    seen: list[Best] = []
    job: Any = SimpleNamespace(request=SimpleNamespace(budget=budget), progress=SimpleNamespace(best=seen.append))
    space = SimpleNamespace(judged_on=samples)
    found: Any = SimpleNamespace(baseline_measurement=measured(1_000, 800, 2.0, base), shown=float("inf"), trials=[], space=space)
    fidelity = Agreement(top1=1 - changed, likely_top1=1 - changed, cosine=1.0, max_abs=0.0)
    for m in made:
        trial: Any = SimpleNamespace(plan=SimpleNamespace(digest="a plan"), measurement=m, fidelity=fidelity)
        show_best(job, found, trial, with_latency=with_latency)
    return seen


def test_only_what_is_better_than_all_before_it_and_keeps_every_limit_is_shown() -> None:
    budget = Budget(minimize="size", max_drop="1%", latency_ms=1.5)
    tried = [measured(s, s, ms, q) for s, ms, q in ((500, 1.0, 0.895), (600, 1.0, 0.9), (400, 1.6, 0.9), (300, 1.0, 0.88), (450, 1.0, 0.91))]
    assert [(b.size_bytes, round(b.drop or 0.0, 3)) for b in shown(budget, *tried)] == [(500, 0.005), (450, -0.01)]


def test_without_data_nothing_is_said_to_be_good() -> None:
    assert not shown(Budget(minimize="size"), measured(500, 500, 1.0, None), base=None)


@pytest.mark.parametrize(("minimize", "size"), [("size", 500), ("download", 200)])
def test_the_bytes_are_of_what_is_minimised(minimize: Quantity, size: int) -> None:
    (best,) = shown(Budget(minimize=minimize, max_drop="1%"), measured(500, 200, 1.0, 0.9))
    assert (best.size_bytes, best.size_ratio, best.download) == (size, {500: 2.0, 200: 4.0}[size], minimize == "download")


def test_a_latency_that_was_not_measured_yet_neither_rules_out_nor_is_told() -> None:
    budget = Budget(minimize="download", max_drop="1%", latency_ms=1.5)
    (best,) = shown(budget, measured(500, 200, 2.0, 0.9), with_latency=False)
    assert best.latency_ms is None and not shown(budget, measured(500, 200, 2.0, 0.9))


def test_what_few_samples_seem_to_gain_is_not_the_best_so_far() -> None:
    budget, lucky = Budget(minimize="size", max_drop="1%"), measured(500, 500, 1.0, 0.916)
    assert not shown(budget, lucky, samples=125, changed=0.15)
    assert shown(budget, lucky, samples=125, changed=0.01) and shown(budget, lucky, samples=50_000, changed=0.15)
