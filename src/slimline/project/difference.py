"""Two results side by side: what was decided otherwise, and what the figures say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimline.core.result import DropInterval, Report
from slimline.core.trial import Measurement
from slimline.errors import UsageError
from slimline.project.file import Project
from slimline.project.lock import Lock, result_of
from slimline.report.sentence import bytes_text, change_text, count_text, difference_text, faster_text, latency_text

LOCK = "lock:"


@dataclass(frozen=True)
class Result:
    """One side. ``decisions``: site -> its methods in words, in the plan's order."""

    name: str
    verdict: str
    metric: str
    measured: Measurement
    drop: DropInterval | None
    decisions: Mapping[str, str]
    machine: str = ""


def read_result(given: str, project: Callable[[], Project]) -> Result:
    """A folder with a report; ``NAME`` of an artefact of the project (``net/onnxruntime/small``); or ``lock:NAME``, what was accepted.

    Raises:
        UsageError: there is none.
    """
    if given.startswith(LOCK):
        file = project()
        entry = Lock.read(file.lock).artefacts.get(given.removeprefix(LOCK))
        if entry is None:
            raise UsageError(
                f"{file.lock} has no artefact {given.removeprefix(LOCK)!r}.", hint=f"It has {', '.join(Lock.read(file.lock).artefacts) or 'none'}."
            )
        return Result(given, entry.verdict, entry.metric, entry.measured, entry.drop, decided(entry.plan))
    folder = Path(given)
    if not (folder / "report.json").is_file():
        items = {i.name: i for i in project().items()} if given.count("/") == 2 else {}
        if given not in items:
            raise UsageError(f"There is no result in {given}.", hint=f"Give a run's folder, MODEL/TARGET/BUDGET of the project, or {LOCK}MODEL/TARGET/BUDGET.")
        folder = items[given].out
    report, plan = result_of(folder)
    if report.compressed is None:
        raise UsageError(f"{given}: nothing was delivered.", hint="Give another result.")
    return Result(given, report.verdict, report.metric, report.compressed, report.drop, decided(plan), _machine(report))


def _machine(report: Report) -> str:
    return ", ".join(report.environment[k] for k in ("processor", "cores") if k in report.environment)


def decided(plan: Mapping[str, Any]) -> dict[str, str]:
    """Site -> what was decided there, from a plan's JSON.

    Example:
        >>> decided({"decisions": [{"site": "fc.weight", "method": {"name": "static_int8", "bits": 8}}]})
        {'fc.weight': 'static_int8 (bits=8)'}
    """
    found: dict[str, str] = {}
    for decision in plan["decisions"]:
        options = ", ".join(f"{k}={v}" for k, v in decision["method"].items() if k != "name")
        text = decision["method"]["name"] + (f" ({options})" if options else "")
        found[decision["site"]] = f"{found[decision['site']]} + {text}" if decision["site"] in found else text
    return found


def figures(a: Result, b: Result) -> list[tuple[str, ...]]:
    """Rows: what, in A, in B, and B against A."""

    def row(name: str, x: float | None, y: float | None, text: Callable[[float], str], better: str, worse: str) -> tuple[str, ...]:
        change = "" if x is None or y is None else change_text(x, y, better, worse)
        return (name, "" if x is None else text(x), "" if y is None else text(y), change)

    m, n = a.measured, b.measured
    rows = [
        ("verdict", a.verdict, b.verdict, "" if a.verdict == b.verdict else "changed"),
        row("file", m.size_bytes, n.size_bytes, bytes_text, "smaller", "larger"),
        row("download", m.download_bytes, n.download_bytes, bytes_text, "smaller", "larger"),
        row("memory", m.memory_bytes, n.memory_bytes, bytes_text, "smaller", "larger"),
        (
            "latency",
            *(latency_text(x.latency_ms.median, x.latency_ms.estimated) for x in (m, n)),
            faster_text(m.latency_ms.median, n.latency_ms.median) if m.latency_ms.estimated == n.latency_ms.estimated else "not comparable",
        ),
        row("multiply-adds", m.macs, n.macs, count_text, "fewer", "more"),
        row("parameters", m.parameters, n.parameters, lambda v: f"{v:,.0f}", "fewer", "more"),
    ]
    if m.quality is not None and n.quality is not None:
        lost = m.quality - n.quality
        same = a.metric == b.metric
        text = f"{difference_text(abs(lost), m.quality)} {'lower' if lost > 0 else 'higher'}" if lost else "unchanged"
        rows.append(
            (f"quality ({a.metric if same else f'{a.metric}, {b.metric}'})", f"{m.quality:.4f}", f"{n.quality:.4f}", text if same else "not comparable")
        )
    if a.drop is not None and b.drop is not None:
        rows.append(("drop at most (95 %)", *(difference_text(r.drop.upper_95, r.measured.quality) for r in (a, b) if r.drop is not None), ""))
    return rows


def decisions(a: Result, b: Result) -> list[tuple[str, str, str]]:
    """Rows: the sites that were decided otherwise, with both decisions."""
    sites = dict.fromkeys([*a.decisions, *b.decisions])
    return [(s, a.decisions.get(s, "as it is"), b.decisions.get(s, "as it is")) for s in sites if a.decisions.get(s) != b.decisions.get(s)]


def caveats(a: Result, b: Result) -> list[str]:
    """What the table does not say."""
    said = ["The latencies are of two runs, which may have met the machine busy or idle; `slimline check` times both side by side."]
    if a.machine and b.machine and a.machine != b.machine:
        said[0] = f"The latencies are of two machines ({a.machine}; {b.machine}); `slimline check` times both side by side."
    return said
