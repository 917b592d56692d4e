"""What a tenth more bytes would buy: the price in the report against a run that has them.

    python benchmarks/marginal_prices.py path/to/resnet20_cifar10.py --size 120KB --time 100s

Compresses twice for latency: with a limit on the file's size, and with that limit and a tenth more. Prints what the first run's report
predicts of the second (losses as the search counts them: rounding several times where training follows), and what the second one's delivered file really has. Its latency is
told at the first run's speed: each run times the original beside its file, and a shared machine is not as fast ten minutes later.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from slimline.core.budget import Budget, parse_bytes, parse_seconds
from slimline.core.request import Request
from slimline.core.result import Report
from slimline.job import compress_request
from slimline.report.sentence import bytes_text, difference_text, time_text
from slimline.report.terminal import LiveProgress
from slimline.sources.task_file import TaskFile

STEP = 0.1


def run(task: Path, size: int, given: argparse.Namespace, out: Path) -> Report:
    """One compression."""
    source = TaskFile.load(str(task))
    budget = Budget(size_bytes=size, max_drop=given.max_drop, minimize="latency")
    request = Request(out=out, force=True, seconds=parse_seconds(given.time), seed=given.seed, budget=budget, model_name=source.name, started=time.monotonic())
    with LiveProgress(Console(stderr=True)) as progress:
        report = compress_request(source, request, progress)
    assert report is not None
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--size", type=parse_bytes, required=True)
    parser.add_argument("--time", default="100s", help="of each of the two runs")
    parser.add_argument("--max-drop", default="1%")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/marginal_prices"))
    given = parser.parse_args()
    more = int((1 + STEP) * given.size)
    first = run(given.task, given.size, given, given.out / "limit")
    second = run(given.task, more, given, given.out / "more")
    show(first, second, given.size, more)


def show(first: Report, second: Report, limit: int, more: int) -> None:
    """Predicted and real, side by side."""
    price = next((p for p in first.prices if p.quantity == "size"), None)
    if price is None or price.loss_change is None or not price.buys:
        raise SystemExit("The first run had no time to price its plan: give more --time.")
    print(f"a file of at most {bytes_text(limit)} {'binds' if price.binds else 'does not bind'}; with {bytes_text(more)}:")
    same_loss, same_time = price.buys["latency"], price.loss_change
    print(f"  predicted  {signed(same_loss, time_text)} at the same loss, or {signed(same_time, nats_text)} at the same latency")
    speed = first.baseline.latency_ms.median / second.baseline.latency_ms.median
    (ms_1, loss_1), (ms_2, loss_2) = delivered(first), delivered(second, speed)
    print(f"  re-run     {signed(ms_2 - ms_1, time_text)} and {signed(loss_2 - loss_1, nats_text)}, as delivered")
    print(f"{'':10} {'file':>9} {'latency':>10} {'loss untrained':>16} {'drop':>13}")
    for name, report, pace in (("limit", first, 1.0), ("more", second, speed)):
        assert report.compressed is not None and report.baseline.quality is not None and report.compressed.quality is not None
        lost = difference_text(report.baseline.quality - report.compressed.quality, report.baseline.quality)
        ms, loss = delivered(report, pace)
        print(f"{name:10} {bytes_text(report.compressed.size_bytes):>9} {time_text(ms):>10} {nats_text(loss):>16} {lost:>13}  {report.verdict}")


def delivered(report: Report, speed: float = 1.0) -> tuple[float, float]:
    """Milliseconds of the file where the original takes ``speed`` times as long as it did, and the loss of its plan before training."""
    assert report.compressed is not None
    return speed * report.compressed.latency_ms.median, measured_loss(report)


def measured_loss(report: Report) -> float:
    """Nats that the delivered plan lost when it was measured untrained."""
    plan = next(p.plan for p in report.pareto if p.chosen)
    return next(p.measured for p in report.predictions.candidates if p.plan == plan)


def nats_text(value: float) -> str:
    return f"{value:.3g} nats"


def signed(value: float, text: Callable[[float], str]) -> str:
    return ("-" if value < 0 else "+") + text(abs(value))


if __name__ == "__main__":
    main()
