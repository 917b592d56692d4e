"""Pages over several runs: the front across them, and two side by side; in the report's own look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from slimline.core.result import Report
from slimline.core.trial import Measurement
from slimline.report import rows
from slimline.report.layers import BITS, Layer, layers_of
from slimline.report.pages import framed
from slimline.report.plots import Kind, Mark, Plot, axis, placed
from slimline.report.sentence import bytes_text, change_text, difference_text, estimate_text, faster_text, in_points, latency_text, time_text

HEAD = ("compare", "run", "target", "verdict", "file", "latency", "lost", "at most", "made")
MOST_NAMED = 12  # runs, up to which each is named in the plot


@dataclass(frozen=True)
class Run:
    """``name``: its folder below the one that is shown; ``made``: when, as text."""

    name: str
    report: Report
    made: str = ""

    @property
    def model(self) -> str:
        """What it is a run of; runs of the same are compared with each other."""
        r = self.report
        return f"{r.model} ({r.baseline.parameters:,} parameters, {r.metric})"

    @property
    def link(self) -> str:
        return "/run?" + urlencode({"run": self.name})

    @property
    def drop(self) -> float | None:
        """As certified, else as observed; ``None`` without data."""
        r = self.report
        if r.drop is not None:
            return r.drop.observed
        if r.compressed is None or r.compressed.quality is None or r.baseline.quality is None:
            return None
        return r.baseline.quality - r.compressed.quality


def front(runs: Sequence[Run]) -> set[str]:
    """Names of the runs that no other beats in bytes, milliseconds and drop at once; an unknown drop beats none."""
    corners = {
        r.name: (r.report.compressed.size_bytes, r.report.compressed.latency_ms.median, float("inf") if r.drop is None else r.drop)
        for r in runs
        if r.report.compressed is not None
    }
    return {n for n, a in corners.items() if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in corners.values())}


def overview(folder: str, runs: Sequence[Run], shown: str, unread: Sequence[str]) -> str:
    """All runs below ``folder``: those of the model ``shown`` (the first's, if there is none of it) in a plot and a table, and links to the others."""
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(run.model, []).append(run)
    current = shown if shown in models else next(iter(models), "")
    chosen = models.get(current, [])
    best = front(chosen)
    return framed(
        "runs.html.j2", title=f"{len(runs)} runs in {folder}", folder=folder, count=len(runs), models=[(m, len(r), "/?" + urlencode({"model": m})) for m, r in models.items()], current=current,
        plots=_plots(chosen, best), head=HEAD, table=[_row(r, r.name in best) for r in chosen], machines=sorted({_machine(r.report) for r in chosen} - {""}), unread=unread,
    )  # fmt: skip


def side_by_side(a: Run, b: Run, figures: Iterable[Sequence[str]], decisions: Sequence[tuple[str, str, str]], caveats: Sequence[str]) -> str:
    """Two runs: figures, layers, and what was decided otherwise."""
    sides: list[tuple[Run, list[Layer]]] = [(r, layers_of(r.report)) for r in (a, b)]
    return framed(
        "compare.html.j2", title=f"{a.name} and {b.name}", sides=sides, figures=[tuple(f) for f in figures], head=("", a.name, b.name, "second against first"),
        decisions=decisions, caveats=[*caveats, *(() if a.model == b.model else (f"These are runs of different models: {a.model}; {b.model}.",))], legend=BITS, shown={layer.key for _, layers in sides for layer in layers},
    )  # fmt: skip


def message(title: str, text: str) -> str:
    """A page that says one thing."""
    return framed("message.html.j2", title=title, text=text)


def _row(run: Run, on_front: bool) -> dict[str, object]:
    r, result = run.report, run.report.compressed
    quality = r.baseline.quality
    cells: dict[str, object] = {
        "name": run.name, "link": run.link, "target": r.target + ("" if r.device == "host" else f", {r.device}"), "verdict": r.verdict + (", interrupted" if r.interrupted else ""), "tone": r.verdict, "front": on_front, "made": run.made, "delivered": result is not None,
        "size": "", "latency": "", "lost": "" if run.drop is None else difference_text(run.drop, quality), "most": "" if r.drop is None else difference_text(r.drop.upper_95, quality),
    }  # fmt: skip
    if result is not None:
        cells["size"] = f"{bytes_text(result.size_bytes)}, {change_text(r.baseline.size_bytes, result.size_bytes, 'smaller', 'larger')}"
        cells["latency"] = (
            f"{latency_text(result.latency_ms.median, result.latency_ms.estimated)}, {faster_text(r.baseline.latency_ms.median, result.latency_ms.median)}"
        )
    return cells


def _machine(report: Report) -> str:
    return ", ".join(report.environment[k] for k in ("processor", "cores") if k in report.environment)


@dataclass(frozen=True)
class _Seen:
    """A point before it has a place."""

    size: float
    ms: float
    drop: float | None
    mark: Mark


def _plots(runs: Sequence[Run], best: set[str]) -> list[Plot]:
    """As in a report: bytes against drop, milliseconds against drop, and one against the other."""
    seen = [s for r in runs if (s := _seen(r, r.name in best, len(runs) <= MOST_NAMED)) is not None]
    if not seen:
        return []
    # The newest of each target, one with a quality before one without: only it says where the original stands.
    newest = {r.report.target: r.report for known in (False, True) for r in reversed(runs) if (r.report.baseline.quality is not None) == known}
    for target, report in newest.items():
        where = "" if len(newest) == 1 else f" ({target})"
        seen.append(_fixed(f"original{where}", report.baseline, "original", report))
        seen += [_fixed(f"{n}{where}", m, "reference", report) for n, m in report.references.items() if n == "plain int8"]
    told = {r.report.baseline.latency_ms.estimated for r in runs}
    latency = "latency, some estimates" if len(told) > 1 else estimate_text("latency", True in told)
    x_size, x_ms = axis([s.size for s in seen], "file size", bytes_text, log=True), axis([s.ms for s in seen], latency, time_text, log=True)
    points = all(in_points(r.baseline.quality) for r in newest.values())
    known = [(s, s.drop) for s in seen if s.drop is not None]
    plots = []
    if len(known) > 1:
        y = axis([d for _, d in known], "lost, points" if points else "lost", lambda v: f"{100 * v:.3g}" if points else f"{v:.3g}")
        plots.append(placed("size", "Size / drop", x_size, y, [(s.size, d, s.mark) for s, d in known], None, None))
        plots.append(placed("latency", "Latency / drop", x_ms, y, [(s.ms, d, s.mark) for s, d in known], None, None))
    return [*plots, placed("both", "Size / latency", x_size, x_ms, [(s.size, s.ms, s.mark) for s in seen], None, None)]


def _seen(run: Run, on_front: bool, named: bool) -> _Seen | None:
    r, m = run.report, run.report.compressed
    if m is None:
        return None
    kind: Kind = "front" if on_front else "trial"
    return _Seen(
        m.size_bytes,
        m.latency_ms.median,
        run.drop,
        Mark(0, 0, kind, (run.name, *_facts(r, m, run.drop), f"{r.target}: {r.verdict}", run.made), run.name if named else ""),
    )


def _fixed(name: str, m: Measurement, kind: Kind, report: Report) -> _Seen:
    base = report.baseline.quality
    drop = None if base is None or m.quality is None else base - m.quality
    return _Seen(m.size_bytes, m.latency_ms.median, drop, Mark(0, 0, kind, (name, *_facts(report, m, drop)), name))


def _facts(report: Report, m: Measurement, drop: float | None) -> tuple[str, ...]:
    base = report.baseline
    lost = "" if drop is None else rows.lost_text(drop, base.quality)
    found = (
        f"{bytes_text(m.size_bytes)}, {change_text(base.size_bytes, m.size_bytes, 'smaller', 'larger')}",
        f"{latency_text(m.latency_ms.median, m.latency_ms.estimated)}, {faster_text(base.latency_ms.median, m.latency_ms.median)}",
        lost,
    )
    return tuple(f for f in found if f)
