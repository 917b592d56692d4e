"""What is minimised, and what decides between equals."""

from __future__ import annotations

from slimline.core.budget import TIE, Budget, Quantity
from slimline.core.trial import Latency, Measurement


def of(size: int, ms: float, macs: int = 1) -> Measurement:
    return Measurement(
        size_bytes=size,
        download_bytes=size,
        download_codec="none",
        memory_bytes=1,
        parameters=1,
        macs=macs,
        latency_ms=Latency(median=ms, p95=ms, runs=1),
    )


def test_bytes_decide_between_latencies_that_are_nearly_equal_and_only_then() -> None:
    base, budget = of(1000, 1.0), Budget()
    assert budget.objective(of(200, 0.505), base) < budget.objective(of(400, 0.5), base)
    assert budget.objective(of(400, 0.4), base) < budget.objective(of(200, 0.5), base)
    assert budget.objective(base, base) == 1 + TIE


def test_milliseconds_never_decide_between_files() -> None:
    minimize: Quantity = "size"
    base, budget = of(1000, 1.0, 10), Budget(minimize=minimize)
    assert budget.objective(of(200, 9.0, 5), base) < budget.objective(of(200, 0.1, 6), base)


def test_a_download_of_a_hundredth_is_smaller_than_one_of_a_fiftieth_whatever_the_multiply_adds() -> None:
    minimize: Quantity = "download"
    base, budget = of(100_000, 1.0, 1000), Budget(minimize=minimize)
    assert budget.objective(of(1000, 1.0, 1000), base) < budget.objective(of(2000, 1.0, 300), base)
    assert budget.objective(of(1000, 1.0, 300), base) < budget.objective(of(1000, 1.0, 1000), base)
