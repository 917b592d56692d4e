"""What binds, what a little more of each budget would buy, and why a site has no other option: in words."""

from __future__ import annotations

from slimline.core.result import UNPRICED, Alternative, DecisionRecord, Price, Report
from slimline.report.sentence import NAMES, bytes_text, difference_text, estimate_text, in_points, quantity_text

ORDER = ("size", "download", "latency", "memory", "macs", "loss")
HEAD = ("budget", "limit", "plan, predicted", "binds", "a tenth more", "buys, at the same loss", "or instead", "worth at the margin")
STRETCHED = 10.0  # times: beyond, what an option changes says nothing of a whole unit
UNITS = {"size": 1e4, "download": 1e4, "memory": 1e4, "latency": 0.1, "macs": 1e6}  # of the margin: 10 KB, 0.1 ms, a million multiply-adds
NOTE = (
    "By the estimates, corrected from the measured trials. Loss is the divergence of the outputs before recovery, as the search counts it:"
    " where training follows and shapes change, rounding several times, since training brings back little of it then."
)

STAGES_NOTE = (
    "Stages of training for a small archive. Each goes on from the one before, or from the last that kept its limit, where the one before had lost clearly more;"
    " after one that kept it a coded bit costs more, else less. Bytes are of real archives, drops of the search samples."
)


def _text(report: Report, quantity: str, value: float, estimated: bool = False) -> str:
    """A value in its unit, losses in the report's."""
    return f"{value:.2g} {report.losses_in}" if quantity == "loss" else quantity_text(quantity, value, estimated)


def _name(report: Report, quantity: str) -> str:
    return estimate_text(NAMES.get(quantity, quantity), quantity == "latency" and report.baseline.latency_ms.estimated)


def binding(report: Report) -> str:
    """One sentence: which budgets stand in the way of a better result; without prices, why there are none."""
    why = "" if report.prices else next((n.removeprefix(UNPRICED) for n in report.not_checked if n.startswith(UNPRICED)), "")
    unpriced = f"There are no prices: {why}." if why else ""
    if not report.prices and not (report.archive_stages and report.cheaper):
        return unpriced
    names = [_name(report, p.quantity) for p in report.prices if p.binds and p.quantity != "loss"]
    if report.cheaper:
        names.insert(
            0,
            f"the allowed drop ({report.cheaper} measured candidate{'s were' if report.cheaper != 1 else ' was'} better in all else; more was lost by {'them' if report.cheaper != 1 else 'it'}, or might have been)",
        )
    loose = [_name(report, p.quantity) for p in report.prices if p.limit is not None and not p.binds]
    best = {"latency": "faster", "macs": "cheaper"}.get(report.minimize, "smaller")
    said = (
        f"What binds: {', '.join(names)}."
        if names
        else f"No budget binds: nothing that was tried is {best} ({_name(report, report.minimize)}), whatever it loses."
    )
    return said + (f" Not reached: {', '.join(loose)}." if loose else "") + (f" {unpriced}" if unpriced else "")


def sentences(report: Report) -> list[str]:
    """One for each price."""
    return [_sentence(report, p) for p in report.prices]


def _sentence(report: Report, price: Price) -> str:
    step = _text(report, price.quantity, price.step)
    if price.quantity == "loss":
        return f"Drop: a tenth more loss ({step}) would buy {_bought(report, price) or 'nothing'}."
    name = _name(report, price.quantity)
    if price.limit is not None and not price.binds and price.quantity != report.minimize:
        return f"{name.capitalize()}: {step} more than the limit of {_text(report, price.quantity, price.limit)} would buy nothing; the plan takes {_text(report, price.quantity, price.used)}."
    bought, milder = _bought(report, price), _milder(report, price)
    same = "" if price.quantity == report.minimize else f" at the same {_name(report, report.minimize)}"
    either = [t for t in (bought and f"{bought} at the same loss", milder and milder + same) if t]
    margin = f" At the margin, {_margin(report, price).replace(':', ' are worth')}." if price.worth else ""
    return f"{name.capitalize()}: {step} more would buy {', or '.join(either) or 'nothing'}.{margin}"


def table(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the prices."""
    rows: list[tuple[str, ...]] = []
    for p in report.prices:
        spent = p.quantity == report.minimize
        rows.append(
            (
                _name(report, p.quantity) + (", minimised" if spent else ""),
                "" if p.limit is None else _text(report, p.quantity, p.limit),
                _text(report, p.quantity, p.used),
                ("yes" if report.cheaper else "no") if p.quantity == "loss" else "yes" if p.binds else "" if p.limit is None else "no",
                f"+{_text(report, p.quantity, p.step)}",
                "" if spent else _bought(report, p) or "nothing",
                "" if p.quantity == "loss" else _milder(report, p) or "nothing",
                _margin(report, p),
            )
        )
    return HEAD, rows


def stages(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of what the stages of training for a small archive came to."""
    finished = {p.plan: "delivered" if p.chosen else "finished" for p in sorted(report.pareto, key=lambda p: p.chosen)}
    quality = report.baseline.quality
    rows: list[tuple[str, ...]] = [
        (str(n), f"{s.price:.2g} {report.losses_in}", bytes_text(s.download_bytes), difference_text(s.drop, quality), finished.get(s.plan, ""))
        for n, s in enumerate(report.archive_stages, 1)
    ]
    return ("stage", "a coded bit cost", "download", "drop", ""), rows


def _margin(report: Report, price: Price) -> str:
    """``10 KB: 0.0014 nats``, by the multiplier; a smaller unit where that would be a large part of the plan."""
    if price.worth is None or price.quantity not in UNITS:
        return ""
    unit = _unit(price)
    return f"{_text(report, price.quantity, unit)}: {_text(report, 'loss', price.worth * unit)}"


def _unit(price: Price) -> float:
    unit = UNITS[price.quantity]
    while unit > price.used / 5 > 0:
        unit /= 10
    return unit


def _bought(report: Report, price: Price) -> str:
    """``0.004 ms less latency, 3 KB less file``: what shrinks, what is minimised first, and what grows with it."""
    parts = []
    for quantity in sorted(price.buys, key=lambda q: (q != report.minimize, ORDER.index(q))):
        change = price.buys[quantity]
        if abs(change) > 1e-3 * _scale(report, quantity) and (quantity == report.minimize or quantity != price.quantity):
            parts.append(f"{_text(report, quantity, abs(change))} {'less' if change < 0 else 'more'} {_name(report, quantity)}")
    gain = price.buys.get(report.minimize, 0.0)
    return ", ".join(parts) if gain < -1e-3 * _scale(report, report.minimize) else ""


def _milder(report: Report, price: Price) -> str:
    """``0.003 nats less loss (about 0.05 points before training)``."""
    if price.loss_change is None or price.loss_change >= -1e-6:
        return ""
    quality = report.baseline.quality
    lost = (
        ""
        if price.drop_change is None or (in_points(quality) and price.drop_change > -5e-5)
        else f"; in proportion, {difference_text(-price.drop_change, quality)}"
    )
    return f"{_text(report, 'loss', -price.loss_change)} less loss{lost}"


def _scale(report: Report, quantity: str) -> float:
    base = report.baseline
    return float(
        {"size": base.size_bytes, "download": base.download_bytes, "latency": base.latency_ms.median, "memory": base.memory_bytes, "macs": base.macs}[quantity]
    )


def alternatives(report: Report, decision: DecisionRecord) -> list[str]:
    """For each contender of a site one sentence: what it would change, and why it was not taken."""
    return [alternative_text(report, a) for a in decision.alternatives]


def alternative_text(report: Report, a: Alternative) -> str:
    """``milder: keep would bring back 0.002 nats (in proportion, 0.05 points; 10 KB here: 0.01 nats) and cost 2.1 KB, worth 0.004 nats here; it costs more than it brings``."""
    lost = a.changes.get("loss", 0.0)
    costs = [(q, a.changes[q]) for q in ORDER if q in a.changes and q != "loss" and abs(a.changes[q]) > 1e-6 * _scale(report, q)]
    grows = ", ".join(_text(report, q, c, report.baseline.latency_ms.estimated) for q, c in costs if c > 0)
    shrinks = ", ".join(_text(report, q, -c, report.baseline.latency_ms.estimated) for q, c in costs if c < 0)
    against = "" if a.worth is None or a.worth >= 0 else f"in all a {'saving' if a.milder else 'cost'} "
    worth = "" if a.worth is None or not costs else f", {against}worth {_text(report, 'loss', abs(a.worth))} here"
    terms = "; ".join(t for t in (_proportion(report, abs(lost)), _rate(report, a)) if t)
    if a.milder:
        gives = f"would bring back {_text(report, 'loss', -lost)}{terms and f' ({terms})'}" if lost < 0 else "would lose no less"
        text = f"{a.label} {gives} and cost {grows or 'nothing'}" + (f", but save {shrinks}" if shrinks else "") + worth
    else:
        text = (
            f"{a.label} would save {shrinks or 'nothing'}"
            + (f", but cost {grows}" if grows else "")
            + worth
            + f", and lose {_text(report, 'loss', lost)} more{terms and f' ({terms})'}"
        )
    why = {
        "price": "it costs more than it brings" if a.milder else "it loses more than that is worth",
        "limit": f"it would break the limit on {_name(report, a.quantity)}",
        "whole": "it does not go together with what other sites became",
        "estimate": "by the corrected estimates it would be a gain; plans are chosen among the candidates that were measured",
    }[a.reason]
    return f"{'milder' if a.milder else 'stronger'}: {text}; {why}"


def _proportion(report: Report, lost: float) -> str:
    """What of the drop as delivered is these nats' share, where they are a part of what the plan loses: ``in proportion, 0.05 points``."""
    total = next((p.used for p in report.prices if p.quantity == "loss"), 0.0)
    if report.drop is None or report.drop.observed <= 0 or not 0 < lost <= total:
        return ""
    share, quality = lost / total * report.drop.observed, report.baseline.quality
    return "" if in_points(quality) and share < 5e-5 else f"in proportion, {difference_text(share, quality)}"


def _rate(report: Report, a: Alternative) -> str:
    """``10 KB here: 0.01 nats``, to be held against what as much is worth at the plan's margin: of what is minimised, else of the first limit that it changes by enough."""
    milder = 1 if a.milder else -1
    for price in sorted(report.prices, key=lambda p: p.quantity != report.minimize):
        change, lost = milder * a.changes.get(price.quantity, 0.0), -milder * a.changes.get("loss", 0.0)
        if price.quantity in UNITS and lost > 0 and change * STRETCHED >= (unit := _unit(price)):
            return f"{_text(report, price.quantity, unit)} here: {_text(report, 'loss', lost / change * unit)}"
    return ""
