"""What a tenth more bytes would buy: the price in the report against a run that has them.

    python benchmarks/marginal_prices.py path/to/resnet20_cifar10.py --size 120KB --time 100s

Compresses twice for latency: with a limit on the file's size, and with that limit and a tenth more. Prints what the first run's report
predicts of the second, and what the second one really has: of the delivered files, and of the candidates
that were measured before any training, which is what the prices are about.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from rich.console import Console

from slimline.core.budget import Budget, parse_bytes, parse_seconds
from slimline.core.request import Request
from slimline.core.result import Price, Report
from slimline.job import compress_request
from slimline.report.sentence import bytes_text, difference_text, time_text
from slimline.report.terminal import LiveProgress
from slimline.sources.task_file import TaskFile

STEP = 0.1


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run. ``losses``: (milliseconds, nats, drop) of every untrained candidate within the limit."""

    report: Report
    losses: list[tuple[float, float, float]]

    @classmethod
    def of(cls, report: Report, limit: int) -> Seen:
        measured = {p.plan: p.measured for p in report.predictions.candidates}
        first = {p.plan: p for p in reversed(report.pareto)}  # of a plan's two points the earlier one: untrained
        fit = [p for p in first.values() if p.size_bytes <= limit and p.plan in measured and p.drop is not None]
        return cls(report, [(p.latency_ms, measured[p.plan], p.drop or 0.0) for p in fit])

    def least_loss(self, milliseconds: float) -> tuple[float, float] | None:
        """Nats and drop of the candidate that lost least in at most so many milliseconds."""
        return min(((nats, drop) for ms, nats, drop in self.losses if ms <= milliseconds), default=None)

    def fastest(self, nats: float) -> float | None:
        """Milliseconds of the fastest candidate that lost at most so much."""
        return min((ms for ms, lost, _ in self.losses if lost <= nats), default=None)


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
    first = Seen.of(run(given.task, given.size, given, given.out / "limit"), given.size)
    second = Seen.of(run(given.task, more, given, given.out / "more"), more)
    show(first, second, next(p for p in first.report.prices if p.quantity == "size"))


def show(first: Seen, second: Seen, price: Price) -> None:
    a, b = first.report, second.report
    assert a.compressed is not None and b.compressed is not None and price.limit is not None
    print(f"limit {bytes_text(price.limit)} {'binds' if price.binds else 'does not bind'}; {bytes_text(price.step)} more")
    print(f"{'':42} {'predicted':>18} {'re-run':>18}")
    base = a.baseline.latency_ms.median / b.baseline.latency_ms.median  # the machine's speed may have changed between the runs
    level = next((p.used for p in a.prices if p.quantity == "loss"), 0.0)
    speed = [s.fastest(level) for s in (first, second)]
    here = min((ms for ms, _, _ in first.losses), default=0.0)
    plan = [s.least_loss(here) for s in (first, second)]
    predicted = price.buys.get("latency")
    rows = [
        ("latency at the same loss, candidates", predicted, None if speed[0] is None or speed[1] is None else base * speed[1] - speed[0], time_text),
        ("latency, delivered", predicted, base * b.compressed.latency_ms.median - a.compressed.latency_ms.median, time_text),
        ("loss at the same latency, candidates", price.loss_change, None if plan[0] is None or plan[1] is None else plan[1][0] - plan[0][0], nats_text),
    ]
    for name, told, found, text in rows:
        print(f"{name:42} {signed(told, text):>18} {signed(found, text):>18}")
    quality = a.baseline.quality
    for name, report in (("limit", a), ("more", b)):
        assert report.compressed is not None and report.baseline.quality is not None and report.compressed.quality is not None
        lost = difference_text(report.baseline.quality - report.compressed.quality, quality)
        print(f"{name:6} {bytes_text(report.compressed.size_bytes)}, {time_text(report.compressed.latency_ms.median)}, {lost} lost, {report.verdict}")


def nats_text(value: float) -> str:
    return f"{value:.3g} nats"


def signed(value: float | None, text: object) -> str:
    return "not known" if value is None else ("-" if value < 0 else "+") + text(abs(value))  # type: ignore[operator]


if __name__ == "__main__":
    main()
