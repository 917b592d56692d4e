"""``report.html``: one self-contained page, readable without a network, without a script, on a phone and in the dark.

The figures' geometry is in ``plots``; markup, style and script are in ``page/``, read by ``pages``. Everything that comes from
outside (names of layers, paths, reasons) is escaped by the template, and the page's own content policy
allows no script but the page's.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from slimline.core.budget import Budget, Quantity
from slimline.core.result import DecisionRecord, Point, Report
from slimline.core.trial import Measurement
from slimline.errors import UsageError
from slimline.report import closeup, prices, rows
from slimline.report.layers import BITS, layers_of
from slimline.report.pages import file, script_and_digest, template
from slimline.report.plots import Axis, Kind, Line, Mark, Plot, Tick, axis, placed
from slimline.report.sentence import (
    NAMES,
    SHRINKS,
    amount_of,
    amount_text,
    bytes_text,
    change_text,
    count_text,
    difference_text,
    estimate_text,
    faster_text,
    in_points,
    is_gain,
    latency_text,
    most_text,
    number_of,
    percent_text,
    points,
    time_text,
)

CORRELATION = 0.8  # rank correlation from which the estimates can be trusted to choose by


def render(report: Report, images: Mapping[int, bytes] = {}, *, home: str = "") -> str:  # read only
    """The report as one HTML file without any outside reference.

    ``images``: PNG of lost samples by index, shown only where the user asked. ``home``: where a link to all runs leads; none if empty.

    Example:
        >>> callable(render)
        True
    """
    script, digest = script_and_digest()
    return template("page.html.j2").render(
        r=report, home=home, script=script, style=Markup(file("page.css")), script_digest=digest, tiles=_tiles(report), summary=rows.summary(report), asked=_asked(report),
        plots=_pareto(report), references=rows.references(report), trials=_trials(report), layers=layers_of(report), legend=BITS, groups=[_group(d) for d in report.decisions if d.op == "channels"],
        blocks=[d for d in report.decisions if d.op == "block"], decisions=_decisions(report), predictions=_predictions(report), trusted=CORRELATION, interval=_interval(report),
        binding=prices.binding(report), priced=prices.table(report), price_note=prices.NOTE, stages=prices.stages(report), stages_note=prices.STAGES_NOTE,
        up=closeup.section(report), images=[(i, base64.b64encode(png).decode()) for i, png in images.items()],
        words=rows.certificate_words(report), elsewhere=rows.elsewhere(report), unknowns=_unknowns(report), next_steps=rows.next_steps(report), left_alone=_left_alone(report), spent=_spent(report), plan=next((p.plan for p in report.pareto if p.chosen), ""),
        lost=lambda value: rows.lost_text(value, report.baseline.quality), most=lambda value: most_text(value, report.baseline.quality), percent=percent_text, number=number_of,
        download=rows.download_words(report), timing=rows.timing_words(report), latency=estimate_text("latency", report.baseline.latency_ms.estimated), few=_untold(report), coded=_coded(report),
    )  # fmt: skip


# -- at a glance ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One figure that matters, large, and what it is of."""

    name: str
    figure: str
    detail: str


def _tiles(report: Report) -> list[Tile]:
    base, result, drop = report.baseline, report.compressed, report.drop
    if result is None:
        return []
    before, after = base.latency_ms, result.latency_ms
    first: Quantity = Budget.model_validate(report.budget).minimize
    first = "size" if first == "latency" else first
    then, now = base.cost(first), result.cost(first)
    tiles = [
        Tile(NAMES[first], change_text(then, now, *SHRINKS[first]), f"{amount_of(first, base)} → {amount_of(first, result)}, {percent_text(now / then)} of the original"),
        Tile(estimate_text("latency", after.estimated), faster_text(before.median, after.median), f"{time_text(before.median)} → {time_text(after.median)}, {percent_text(after.median / before.median)} of the original"),
    ]  # fmt: skip
    if drop is not None:
        known = f"{most_text(drop.upper_95, base.quality)} with 95 % confidence; {amount_text(drop.allowed, base.quality)} allowed"
        tiles.append(_lost_tile(report.metric, drop.observed, base.quality, known))
    elif base.quality is not None and result.quality is not None:
        tiles.append(_lost_tile(report.metric, base.quality - result.quality, base.quality, "observed, not certified"))
    f = report.fidelity
    if f is not None:
        tiles.append(
            Tile(
                "like the original",
                f"{100 * f.top1:.1f} %" if f.top1 is not None else f"{f.cosine:.4f}",
                "of answers have the same top class" if f.top1 is not None else "mean cosine of the outputs",
            )
        )
    return tiles


def _lost_tile(metric: str, drop: float, quality: float | None, detail: str) -> Tile:
    return Tile(f"{metric} {'gained' if is_gain(drop, quality) else 'lost'}", difference_text(abs(drop), quality), detail)


def _asked(report: Report) -> list[str]:
    """The budget in words."""
    budget, base = Budget.model_validate(report.budget), report.baseline
    texts = {
        "size": ("file", bytes_text),
        "download": ("download", bytes_text),
        "memory": ("memory", bytes_text),
        "latency": ("latency", time_text),
        "macs": ("multiply-adds", count_text),
    }
    said = [f"{texts[q][0]} at most {texts[q][1](limit)}" for q, limit in budget.limits().items()]
    allowed = _allowed(report)
    if allowed is not None:
        said.append(f"drop at most {difference_text(allowed, base.quality)}")
    return [*said, f"as little {report.minimize} as possible", f"batch {budget.batch}, {budget.threads} thread{'s' if budget.threads != 1 else ''}"]


def _allowed(report: Report) -> float | None:
    """The allowance in metric units; ``None`` without a quality to allow anything of."""
    if report.drop is not None:
        return report.drop.allowed
    if report.baseline.quality is None:
        return None
    try:
        return Budget.model_validate(report.budget).max_drop.allowed(report.baseline.quality)
    except UsageError:  # a run with such a budget ends before there is a report, but a report must not fail on it
        return None


# -- the front ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A point of the plane before it has a place: what it costs and what it loses."""

    size: float
    ms: float
    drop: float | None
    mark: Mark
    download: float | None = None


def _distinct(report: Report) -> list[Point]:
    """Each measured point once, in order of bytes, the chosen one last so that nothing hides it."""
    by_place = {
        (p.plan, p.size_bytes, p.latency_ms, p.drop): p
        for p in (_delivered(report, p) if p.chosen else p for p in sorted(report.pareto, key=lambda p: p.chosen))
    }
    return sorted(by_place.values(), key=lambda p: (p.chosen, p.on_front, p.size_bytes))


def _coded(report: Report) -> bool:
    """Whether trials are told apart by their downloads: where these count, and are known (older reports have them of the result alone)."""
    return rows.counts_download(report) and any(p.download_bytes is not None for p in report.pareto)


def _untold(report: Report) -> bool:
    """Whether the front is another than the points have as they are drawn: drops of few samples were not believed."""

    coded = _coded(report)

    def corner(p: Point) -> tuple[float, float, float, float]:
        return p.size_bytes, (p.download_bytes or 0.0) if coded else 0.0, p.latency_ms, p.drop or 0.0

    def beaten(p: Point) -> bool:
        return any(corner(q) != corner(p) and all(x <= y for x, y in zip(corner(q), corner(p), strict=True)) for q in report.pareto)

    return any(p.on_front == beaten(p) for p in report.pareto)


def _delivered(report: Report, point: Point) -> Point:
    """The chosen trial as it was measured at the end, beside the references and on the holdout, as the table of before and after has it."""
    result, drop = report.compressed, report.drop
    if result is None:
        return point
    changes = {"size_bytes": result.size_bytes, "download_bytes": result.download_bytes, "latency_ms": result.latency_ms.median} | (
        {} if drop is None else {"drop": drop.observed, "fidelity": report.fidelity}
    )
    return point.model_copy(update=changes)


def _seen(report: Report) -> list[Seen]:
    base, coded = report.baseline, _coded(report)

    def facts(size: float, download: float | None, ms: float, drop: float | None, where: str) -> tuple[str, ...]:
        lost = "" if drop is None else f"{rows.lost_text(drop, base.quality)} {where}".strip()
        gains = (
            f"{bytes_text(size)}, {change_text(base.size_bytes, size, 'smaller', 'larger')}",
            _download_fact(report, download) if coded and download is not None else "",
            f"{latency_text(ms, base.latency_ms.estimated)}, {faster_text(base.latency_ms.median, ms)}",
        )
        return tuple(t for t in (*gains, lost) if t)

    def fixed(name: str, m: Measurement, kind: Kind, where: str, note: str) -> Seen:
        drop = None if base.quality is None or m.quality is None else base.quality - m.quality
        tip = (name, *facts(m.size_bytes, m.download_bytes, m.latency_ms.median, drop, where), *((note,) if note else ()))
        return Seen(m.size_bytes, m.latency_ms.median, drop, Mark(0, 0, kind, tip, name), m.download_bytes)

    found = []
    where = "on the holdout" if report.drop is not None else ""
    for p in _distinct(report):
        kind: Kind = "chosen" if p.chosen else "front" if p.on_front else "trial"
        title = {"chosen": "Chosen: ", "front": "On the front: ", "trial": ""}[kind] + p.label
        alike = () if p.fidelity is None or p.fidelity.top1 is None else (f"{percent_text(p.fidelity.top1)} of answers like the original's",)
        tip = (
            title,
            *facts(p.size_bytes, p.download_bytes, p.latency_ms, p.drop, where if p.chosen and where else "on the search samples"),
            *alike,
            f"plan {p.plan}",
        )
        found.append(Seen(p.size_bytes, p.latency_ms, p.drop, Mark(0, 0, kind, tip, "chosen" if p.chosen else ""), p.download_bytes))
    others = [fixed(name, r, "reference", where, r.note) for name, r in report.references.items()]
    return [fixed("original", base, "original", "", ""), *others, *found]


def _download_fact(report: Report, download: float) -> str:
    return f"{bytes_text(download)} to download, {change_text(report.baseline.download_bytes, download, 'smaller', 'larger')}"


def _stages(report: Report) -> list[tuple[float, float, Mark]]:
    """Bytes to download and drop of what training for a small archive came to, but for what was finished: that is among the trials."""
    finished, found = {p.plan for p in report.pareto}, list[tuple[float, float, Mark]]()
    for number, stage in enumerate(report.archive_stages, 1):
        if stage.plan not in finished:
            lost = f"{rows.lost_text(stage.drop, report.baseline.quality)} on the search samples"
            tip = (
                f"Stage {number} of training for a small archive",
                f"a coded bit cost {stage.price:.2g} {report.losses_in}",
                _download_fact(report, stage.download_bytes),
                lost,
            )
            found.append((stage.download_bytes, stage.drop, Mark(0, 0, "trial", tip)))
    return found


def _pareto(report: Report) -> list[Plot]:
    """Bytes against drop, milliseconds against drop, and one against the other (the only one where nothing is known of quality); bytes to download where they count."""
    seen = _seen(report)
    if len(seen) < 2:
        return []
    limits = Budget.model_validate(report.budget).limits()
    plots = []
    drops = [s for s in seen if s.drop is not None]
    if len(drops) > 1:
        y = _drop_axis(report, [s.drop for s in drops if s.drop is not None])
        allowed = _allowed(report)
        near = [s for s in drops if s.drop is not None and not y.beyond(s.drop)]  # what is ruined must not squash the others here either
        x_size, x_ms = _costs(report, near or drops)
        if _coded(report):
            coded = [*((s.download, s.drop, s.mark) for s in drops if s.download is not None and s.drop is not None), *_stages(report)]
            x_coded = axis([d for d, drop, _ in coded if not y.beyond(drop)] or [d for d, *_ in coded], "to download", bytes_text, log=True)
            plots.append(placed("download", "Download / drop", x_coded, y, coded, limits.get("download"), allowed))
        plots.append(placed("size", "Size / drop", x_size, y, [(s.size, s.drop, s.mark) for s in drops if s.drop is not None], limits.get("size"), allowed))
        plots.append(
            placed("latency", "Latency / drop", x_ms, y, [(s.ms, s.drop, s.mark) for s in drops if s.drop is not None], limits.get("latency"), allowed)
        )
    x_size, x_ms = _costs(report, seen)
    both = placed("both", "Size / latency", x_size, x_ms, [(s.size, s.ms, s.mark) for s in seen], limits.get("size"), limits.get("latency"))
    return sorted([*plots, both], key=lambda p: p.key != report.minimize)


def _costs(report: Report, seen: list[Seen]) -> tuple[Axis, Axis]:
    """Axes of bytes and of milliseconds that hold these."""
    return axis([s.size for s in seen], "file size", bytes_text, log=True), axis(
        [s.ms for s in seen], estimate_text("latency", report.baseline.latency_ms.estimated), time_text, log=True
    )


def _lost_title(report: Report) -> str:
    """What the axis of drops is called; a name that would not fit on a phone is left to the tables."""
    return (report.metric if len(report.metric) <= 20 else "quality") + " lost" + (", points" if in_points(report.baseline.quality) else "")


def _drop_axis(report: Report, drops: list[float]) -> Axis:
    """From the best to a few allowances: a ruined trial must not squash all others; it is drawn at the edge."""
    allowed = _allowed(report) or 0.0
    told = [p.drop for p in _distinct(report) if p.drop is not None and (p.chosen or p.on_front)]
    cap = max(4 * allowed, 1.3 * max((d for d in told if d <= 6 * allowed), default=0.0), 1e-6)
    values = [*(d for d in drops if d <= cap), 0.0, max(drops) if max(drops) <= 1.5 * cap else cap]
    scale = in_points(report.baseline.quality)
    return axis(values, _lost_title(report), lambda v: f"{100 * v:.3g}" if scale else f"{v:.3g}")


def _trials(report: Report) -> list[tuple[str, ...]]:
    """The plot as a table: plan, what it is, bytes, bytes to download where they count, time, drop, remark."""
    coded = _coded(report)
    return [
        (p.plan, p.label, bytes_text(p.size_bytes), *(("" if p.download_bytes is None else bytes_text(p.download_bytes),) if coded else ()), time_text(p.latency_ms), "" if p.drop is None else difference_text(p.drop, report.baseline.quality), "chosen" if p.chosen else "on the front" if p.on_front else "")
        for p in reversed(_distinct(report))
    ]  # fmt: skip


# -- layer by layer -------------------------------------------------------------------------------------


def _group(d: DecisionRecord) -> tuple[str, float, str, str]:
    """Name, percent kept, the same in words, and why."""
    gone = d.after == "removed"
    old, new = (1, 0) if gone else d.width or (1, 1)
    return d.site.removesuffix("#channels"), round(100 * new / old, 1) if old else 100.0, f"{new} of {old}" if d.width and not gone else d.after, d.why


def _decisions(report: Report) -> tuple[tuple[str, ...], list[tuple[tuple[tuple[str, str], ...], list[str], tuple[str, ...]]]]:
    """Head, and for every site its named cells, its closest contenders, and what else was considered."""
    head, body = rows.decisions(report)
    return head, [(tuple(zip(head, row, strict=True)), prices.alternatives(report, d), d.considered) for row, d in zip(body, report.decisions, strict=True)]


# -- how sure ---------------------------------------------------------------------------------------------


def _predictions(report: Report) -> Plot | None:
    """Predicted against measured loss, both logarithmic and on the same range, with the diagonal."""
    known = report.predictions.candidates
    positive = [v for p in known for v in (p.predicted, p.measured) if v > 0]
    if len(known) < 2 or not positive:
        return None
    least = min(positive)
    x = axis(positive, f"predicted loss, {report.losses_in}", lambda v: f"{v:.0e}".replace("e-0", "e-") if v < 1e-3 else f"{v:g}", log=True)
    marks = [
        Mark(x.place(max(p.predicted, least)), round(100 - x.place(max(p.measured, least)), 2), "front", (f"plan {p.plan}", f"predicted {p.predicted:.4g} {report.losses_in}", f"measured {p.measured:.4g} {report.losses_in}"), beyond=min(p.predicted, p.measured) <= 0)
        for p in sorted(known, key=lambda p: p.predicted)
    ]  # fmt: skip
    y = Axis(x.low, x.high, x.log, f"measured loss, {report.losses_in}", x.ticks)
    return Plot("predictions", "Predicted against measured", x, y, tuple(marks), (Line(0, 100, 100, 0),), beyond=sum(m.beyond for m in marks))


@dataclass(frozen=True)
class Interval:
    """The certificate as a drawing: places in percent from the left."""

    low: float
    observed: float
    high: float
    allowed: float
    ticks: tuple[Tick, ...]
    title: str
    spoken: str


def _interval(report: Report) -> Interval | None:
    d = report.drop
    if d is None:
        return None
    quality = report.baseline.quality
    scale = in_points(quality)
    a = axis(
        [d.lower_95, d.upper_95, d.observed, d.allowed, 0.0],
        _lost_title(report),
        lambda v: points(v).removesuffix("0").removesuffix(".0") if scale else f"{v:.3g}",
        margin=0.12,
    )
    spoken = f"95 % limits {amount_text(d.lower_95, quality)} and {amount_text(d.upper_95, quality)}, observed {amount_text(d.observed, quality)}, allowed {difference_text(d.allowed, quality)}"
    return Interval(a.place(d.lower_95), a.place(d.observed), a.place(d.upper_95), a.place(d.allowed), a.ticks, a.title, spoken)


def _unknowns(report: Report) -> list[str]:
    """What nobody checked: the run's own list, and what is missing from the report itself."""
    said = list(report.not_checked)
    if report.compressed is not None and report.drop is None and report.baseline.quality is None:
        said.append("quality and drop: there was no data")
    if report.schedule.schedule_truncated:
        said.append("the rest of the schedule: the clock cut it off")
    return said


def _left_alone(report: Report) -> list[tuple[str, list[str]]]:
    """Each reason once, with the places that it holds for."""
    found: dict[str, list[str]] = {}
    for r in report.refused:
        found.setdefault(r.reason, []).append(r.where)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _spent(report: Report) -> list[tuple[str, str, float]]:
    """Stage, seconds, percent of the longest."""
    spent = report.schedule.spent
    longest = max(spent.values(), default=0.0) or 1.0
    return [(name, f"{s:.1f} s", round(100 * s / longest, 1)) for name, s in spent.items()]
