"""How budgets are written, and what breaks them. Runs in a second and compresses nothing.

python examples/budgets.py
"""

from __future__ import annotations

from slimline import Budget, SlimlineError
from slimline.core.trial import Latency, Measurement


def measured(size_bytes: int, latency_ms: float, quality: float) -> Measurement:
    """A measurement with made-up figures, as a run would hold it."""
    latency = Latency(median=latency_ms, p95=latency_ms * 1.1, runs=100)
    return Measurement(
        size_bytes=size_bytes, download_bytes=size_bytes, download_codec="zstd-19", memory_bytes=2 * size_bytes,
        parameters=size_bytes // 4, macs=10**7, latency_ms=latency, quality=quality,
    )  # fmt: skip


def main() -> None:
    # Text as on the command line, or numbers. KB is 1,000 bytes, KiB 1,024. What is not limited is not looked at; `minimize` says what to bring down within the limits.
    budget = Budget(size_bytes="300KB", latency_ms="800us", max_drop="1%", minimize="latency")
    baseline = measured(1_200_000, 0.74, 0.877)
    for candidate in (measured(250_000, 0.30, 0.871), measured(350_000, 0.30, 0.871), measured(250_000, 0.30, 0.860)):
        broken = ", ".join(f"{v.quantity} {v.value:,g} > {v.limit:,g}" for v in budget.violations(candidate, baseline))
        print(f"{candidate.size_bytes:>8,} bytes, quality {candidate.quality}: {broken or 'within the budget'}")

    # A drop is in metric units. A percentage needs a metric in [0, 1]; `2%rel` is a share of the baseline's own value.
    print("1% of a top-1 of 0.9 allows", Budget(max_drop="1%").max_drop.allowed(0.9))
    print("2%rel of a metric at -50 allows", Budget(max_drop="2%rel").max_drop.allowed(-50.0))
    try:
        Budget(max_drop="1%").max_drop.allowed(-50.0)
    except SlimlineError as refused:
        print("refused:", refused)


if __name__ == "__main__":
    main()
