"""What is minimised, and what decides between equals."""

from __future__ import annotations

from typing import Any

import pytest

from slimline.core.budget import TIE, Budget, Quantity
from slimline.core.trial import Latency, Measurement
from slimline.errors import UsageError


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


def test_no_bytes_make_up_for_being_slower_than_the_original_where_latency_is_minimised() -> None:
    base = of(1000, 1.0)
    assert Budget().objective(of(100, 1.05), base) > Budget().objective(base, base) > Budget().objective(of(900, 1.01), base)
    assert Budget(minimize="size").objective(of(100, 1.05), base) < Budget(minimize="size").objective(base, base)


def test_milliseconds_never_decide_between_files() -> None:
    minimize: Quantity = "size"
    base, budget = of(1000, 1.0, 10), Budget(minimize=minimize)
    assert budget.objective(of(200, 9.0, 5), base) < budget.objective(of(200, 0.1, 6), base)


@pytest.mark.parametrize("minimize", ["size", "download"])
def test_a_file_of_a_hundredth_is_smaller_than_one_of_a_fiftieth_whatever_the_multiply_adds(minimize: Quantity) -> None:
    base, budget = of(100_000, 1.0, 1000), Budget(minimize=minimize)
    assert budget.objective(of(1000, 1.0, 1000), base) < budget.objective(of(2000, 1.0, 300), base)
    assert budget.objective(of(1000, 1.0, 300), base) < budget.objective(of(1000, 1.0, 1000), base)


def test_limits_are_written_as_on_the_command_line_or_as_numbers() -> None:
    written: dict[str, Any] = {
        "size_bytes": "300KB",
        "download_bytes": "1KiB",
        "memory_bytes": "1.5MB",
        "latency_ms": "800us",
        "macs": "10M",
        "max_drop": "2%rel",
    }
    assert Budget(**written) == Budget(size_bytes=300_000, download_bytes=1024, memory_bytes=1_500_000, latency_ms=0.8, macs=10_000_000, max_drop="2%rel")


@pytest.mark.parametrize(("given", "says"), [
    ({"size_bytes": "300 potatoes"}, "The size '300 potatoes' is not understood. Write it like 300KB or 1.5MB."),
    ({"size_bytes": "1e400KB"}, "The size '1e400KB' is too large."),
    ({"latency_ms": "2"}, "The latency '2' is not understood. Write it like 2ms"),
    ({"size_bytes": True}, "The size 'True' is not understood."),
    ({"size_bytes": -5}, "greater than 0 at size_bytes (given: -5)"),
    ({"latency_ms": float("inf")}, "finite number at latency_ms (given: inf)"),
    ({"max_drop": None}, "at max_drop"),
    ({"sise": 5}, "not permitted at sise (given: 5). It takes size_bytes, download_bytes,"),
])  # fmt: skip
def test_what_cannot_be_meant_is_told_with_its_name_and_value(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget(**given)
    assert says in str(caught.value) and "\n" not in str(caught.value)
