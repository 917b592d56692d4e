"""The gate: evidence in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import pydantic

from slimline.core.budget import Drop
from slimline.core.data import Data
from slimline.core.result import DropInterval, Verdict
from slimline.project.evidence import Drops, Evidence, Figures
from slimline.project.file import Gate, Item
from slimline.report.sentence import bytes_text, count_text, difference_text, latency_text, least_text, most_text, percent_text, time_text

Check = Literal["size", "download", "memory", "macs", "latency", "drop", "class drop", "artefact"]
Against = Literal["budget", "lock", "project file"]
COUNTED = ("size", "download", "memory", "macs")
NAMES = {"size": "the file", "download": "the download", "memory": "the memory", "macs": "the number of multiply-adds"}
WORST_SHOWN = 3


class Finding(Data):
    """One check of one artefact, in one sentence. ``line``: of the project file."""

    artefact: str
    check: Check
    against: Against
    outcome: Verdict
    sentence: str
    line: int = pydantic.Field(ge=1)

    @property
    def title(self) -> str:
        return f"{self.check} against the {self.against}"


def findings(item: Item, gate: Gate, evidence: Evidence, *, has_lock: bool) -> tuple[Finding, ...]:
    """All checks of one artefact: its own budget first, then what a change against the lock may cost. ``has_lock``: there is a lock file."""

    def finding(check: Check, against: Against, outcome: Verdict, sentence: str) -> Finding:
        return Finding(artefact=item.name, check=check, against=against, outcome=outcome, sentence=sentence, line=item.line)

    found = [finding(c, "budget", o, s) for c, o, s in _counted_budget(item, evidence.figures)]
    if not evidence.quick:
        found += [finding(c, "budget", o, s) for c, o, s in _measured_budget(item, evidence)]
    if not has_lock:
        return tuple(found)
    if evidence.locked is None:
        return (*found, finding("artefact", "lock", "inconclusive", "It is not in the lock, so there is nothing to compare with; `slimline accept` adds it."))
    if evidence.same:
        return (*found, finding("artefact", "lock", "pass", "It is the accepted artefact, byte for byte."))
    found += [finding(c, "lock", o, s) for c, o, s in _counted_growth(gate, evidence.figures, evidence.locked)]
    if not evidence.quick:
        found += [finding(c, "lock", o, s) for c, o, s in _measured_growth(gate, evidence)]
    return tuple(found)


def unjudged(artefact: str, why: str, line: int = 1) -> Finding:
    """Where there is nothing to judge, or the judging was stopped: that fails, too. ``why``: with the remedy."""
    return Finding(artefact=artefact, check="artefact", against="project file", outcome="fail", sentence=why, line=line)


def verdict(found: Iterable[Finding]) -> Verdict:
    """``fail`` if anything fails, else ``inconclusive`` if anything is."""
    outcomes = {f.outcome for f in found}
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


Judged = tuple[Check, Verdict, str]


def _counted_budget(item: Item, figures: Figures) -> Iterator[Judged]:
    limits = {"size": item.budget.max_size, "download": item.budget.max_download, "memory": item.budget.max_memory, "macs": item.budget.max_macs}
    for name in COUNTED:
        limit, value = limits[name], getattr(figures, name)
        if limit is not None:
            text = _amount(name)
            yield name, "pass" if value <= limit else "fail", f"{NAMES[name].capitalize()} is {text(value)}; at most {text(limit)} are allowed."  # type: ignore[misc]


def _measured_budget(item: Item, evidence: Evidence) -> Iterator[Judged]:
    limit = item.budget.max_latency
    if limit is not None:
        yield ("latency", *latency_within(limit, evidence.rounds, evidence.recorded_ms, evidence.estimated))
    if evidence.against_original is None:
        yield "drop", "inconclusive", "There is no data to measure the quality on."
    else:
        interval = evidence.against_original.interval
        outcome = _decided(interval, evidence.source)
        yield "drop", outcome, drop_sentence(outcome, interval, evidence.quality, "the original", seen=evidence.source == "from_train")
    allowed, drops = item.budget.max_class_drop, evidence.against_original
    if allowed is not None and drops is not None and drops.classes:
        yield ("class drop", *class_outcome(drops, allowed, "the original", seen=evidence.source == "from_train"))
    elif allowed is not None:
        yield "class drop", "inconclusive", "There are no classes to measure it on: that takes data whose targets are labels, and scores between 0 and 1."


def _counted_growth(gate: Gate, new: Figures, old: Figures) -> Iterator[Judged]:
    for name in COUNTED:
        allowed: float | None = getattr(gate, name)
        if allowed is None:
            continue
        before, after = getattr(old, name), getattr(new, name)
        text, growth = _amount(name), after / before - 1 if before else 0.0
        said = f"{NAMES[name].capitalize()} {_grown(growth)} ({text(before)} to {text(after)}); {_percent(allowed)} more are allowed."
        yield name, "pass" if growth <= allowed else "fail", said  # type: ignore[misc]


def _measured_growth(gate: Gate, evidence: Evidence) -> Iterator[Judged]:
    if not evidence.locked_at_hand:
        missing = "The accepted artefact is not here or is another file, so it cannot be run beside the new one; restore it, or rebuild and accept it again."
        yield from (("latency", "inconclusive", missing) for _ in [0] if gate.latency is not None)
        yield from (("drop", "inconclusive", missing) for _ in [0] if gate.drop is not None)
    else:
        if gate.latency is not None:
            yield ("latency", *slower_by([new / old for old, new in evidence.rounds if old is not None], gate.latency, evidence.estimated))
        if gate.drop is not None and evidence.against_locked is not None:
            interval = evidence.against_locked.interval
            outcome = _decided(interval, evidence.source)
            yield "drop", outcome, drop_sentence(outcome, interval, evidence.quality, "the accepted artefact", seen=evidence.source == "from_train")
    drops, whom = (evidence.against_locked, "the accepted artefact") if evidence.against_locked is not None else (evidence.against_original, "the original")
    if gate.class_drop is not None and drops is not None and drops.classes:
        yield ("class drop", *class_outcome(drops, gate.class_drop, whom, seen=evidence.source == "from_train"))


def _decided(interval: DropInterval, source: str) -> Verdict:
    from slimline.measure.certify import decide

    return decide(interval, source)  # type: ignore[arg-type]


def drop_sentence(outcome: Verdict, interval: DropInterval, quality: float | None, whom: str, *, seen: bool = False) -> str:
    """What was lost against ``whom``, and how surely."""
    observed = (
        f"{'Lost' if interval.observed >= 0 else 'Gained'} {difference_text(abs(interval.observed), quality)} against {whom} on {interval.samples:,} samples"
    )
    allowed = f"{difference_text(interval.allowed, quality)} are allowed"
    if outcome == "fail":
        return f"{observed}; with 95 % confidence {least_text(interval.lower_95, quality)}; {allowed}."
    at_most = f"{observed}; with 95 % confidence {most_text(interval.upper_95, quality)}; {allowed}"
    if outcome == "pass":
        return f"{at_most}."
    why = (
        "the original has seen these samples"
        if seen
        else f"it takes {interval.needed_samples:,} samples to decide"
        if interval.needed_samples
        else "that is neither certified nor refuted"
    )
    return f"{at_most}: {why}."


def class_outcome(drops: Drops, allowance: Drop, whom: str, *, seen: bool = False) -> tuple[Verdict, str]:
    """Some class is surely beyond the allowance, or each is surely within, or neither. ``seen``: the original was trained on these samples."""
    allowed = allowance.value
    classes, count = sorted(drops.classes, key=lambda d: -d.observed), len(drops.classes)
    ruined = [d for d in classes if d.lower > allowed]
    if ruined:
        listed = "; ".join(f"class {d.label} lost {_points(d.observed)} points, at least {_points(d.lower)}" for d in ruined[:WORST_SHOWN])
        more = f" and {len(ruined) - WORST_SHOWN} more" if len(ruined) > WORST_SHOWN else ""
        return "fail", f"Against {whom}, {listed}{more} (95 % confidence over all {count} classes together); {_points(allowed)} are allowed."
    unsure = [d for d in classes if d.upper > allowed]
    worst = classes[0]
    if unsure:
        most = max(unsure, key=lambda d: d.upper)
        return "inconclusive", (
            f"Against {whom}, {len(unsure)} of {count} classes have too few samples to say that they lost at most {_points(allowed)} points: "
            f"class {most.label} lost {_points(most.observed)} on {most.samples:,} samples, which may be {_points(most.upper)}."
        )
    said = f"Against {whom}, no class lost more than {_points(allowed)} points (95 % confidence); class {worst.label} lost most, {_points(worst.observed)}"
    return ("inconclusive", f"{said}: the original has seen these samples.") if seen else ("pass", f"{said}.")


def slower_by(ratios: Sequence[float], allowed: float, estimated: bool = False) -> tuple[Verdict, str]:
    """From new over accepted latency of each round: medians with limits that hold for any distribution."""
    from slimline.numerics.statistics import median_limits

    lower, upper = median_limits(ratios)
    middle = sorted(ratios)[len(ratios) // 2]
    outcome: Verdict = "fail" if lower > 1 + allowed else "pass" if upper <= 1 + allowed else "inconclusive"
    change = "as fast as" if abs(middle - 1) < 0.005 else f"{_percent(abs(middle - 1))} {'slower' if middle > 1 else 'faster'} than"
    if estimated:
        return outcome, f"The artefact is {change} the accepted one, both by the device's latency table (estimate); {_percent(allowed)} slower is allowed."
    said = f"The artefact is {change} the accepted one, both timed here side by side in {len(ratios)} rounds (95 % limits: {lower:.2f} and {upper:.2f} times its latency)"
    return outcome, f"{said}; {_percent(allowed)} slower is allowed."


def latency_within(limit: float, rounds: Sequence[tuple[float | None, float]], recorded: float | None, estimated: bool = False) -> tuple[Verdict, str]:
    """Milliseconds against an absolute limit, as they would be on the machine of the lock: scaled by what the accepted artefact takes here; estimates are of the device wherever they are made."""
    from slimline.numerics.statistics import median_limits

    scaled = not estimated and recorded is not None and all(old is not None for old, _ in rounds)
    values = [new * recorded / old if scaled and recorded is not None and old is not None else new for old, new in rounds]
    lower, upper = median_limits(values)
    outcome: Verdict = "fail" if lower > limit else "pass" if upper <= limit else "inconclusive"
    middle = latency_text(sorted(values)[len(values) // 2], estimated)
    if estimated:
        return outcome, f"A call takes {middle}; at most {time_text(limit)} are allowed."
    how = ""
    if scaled and recorded is not None:
        factor = sorted(old for old, _ in rounds if old is not None)[len(rounds) // 2] / recorded
        how = f" on the lock's machine (this one takes {factor:.2f} times as long for the accepted artefact)"
    return outcome, f"A call takes {middle}{how}, 95 % limits {time_text(lower)} and {time_text(upper)}; at most {time_text(limit)} are allowed."


def _amount(name: str) -> Callable[[float], str]:
    return count_text if name == "macs" else bytes_text


def _percent(share: float) -> str:
    return "0 %" if share == 0 else percent_text(share)


def _points(fraction: float) -> str:
    return f"{100 * fraction + 0.0:.1f}"


def _grown(growth: float) -> str:
    return "is unchanged" if abs(growth) < 0.0005 else f"{'grew' if growth > 0 else 'shrank'} by {_percent(abs(growth))}"
