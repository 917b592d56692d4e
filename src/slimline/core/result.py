"""What a run found: the content of ``report.json``, field for field."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import pydantic

from slimline.core.budget import Quantity
from slimline.core.data import Data
from slimline.core.trial import Agreement, Measurement

Verdict = Literal["pass", "fail", "inconclusive"]
UNPRICED = "what more of each budget would buy: "  # how the note begins that says why there are no prices
QUANTITY_FIELDS = ("size_bytes", "download_bytes", "memory_bytes", "rss_bytes", "parameters", "macs", "latency_ms")


class DropInterval(Data):
    """The drop (baseline minus compressed) with one-sided 95 % limits, in metric units.

    ``needed_samples``: how many samples it would take to decide at the observed drop; ``None`` when decided.
    """

    observed: float
    lower_95: float
    upper_95: float
    allowed: float
    samples: int
    needed_samples: int | None = None


class SequenceStep(Data):
    """One finalist's test: in order, each at 5 %, stopping at the first that fails."""

    plan: str
    observed: float
    upper_95: float
    passed: bool


class Certificate(Data):
    """``source``: ``user`` (the user's holdout), ``from_search`` or ``from_train`` (the original has seen it: never a pass)."""

    source: Literal["user", "from_search", "from_train"]
    test: str
    sequence: tuple[SequenceStep, ...] = ()
    openings: int = 1
    """How many sequences the holdout was opened for: more than one where a run went on after it was opened, and could not make the same finalists again."""


class Reference(Measurement):
    """A simple way to compress, measured the same way."""

    recovery_steps: int = 0
    fidelity: Agreement | None = None
    note: str = ""


class Point(Data):
    """One measured trial on the front's plane. ``quality`` and ``drop`` are of the search split. ``on_front``: of drops as far as they are believed (``numerics.changes.believed``)."""

    plan: str
    label: str
    size_bytes: int
    download_bytes: int | None = None
    latency_ms: float
    memory_bytes: int
    macs: int
    quality: float | None
    drop: float | None
    chosen: bool = False
    on_front: bool = False
    fidelity: Agreement | None = None


class ArchiveStage(Data):
    """One stage of training for a small archive. ``price``: of a mean coded bit of a weight, in nats. ``drop``: on the search samples. ``kept``: whether it kept what a stage may
    lose; the price rose then, and fell else."""

    plan: str
    price: float
    download_bytes: int
    drop: float
    kept: bool


class Cost(Data):
    """Predicted and measured cost and loss of one decision; ``None`` where it cannot be had for one layer alone."""

    bytes_before: int | None = None
    bytes_predicted: int | None = None
    bytes_measured: int | None = None
    ms_before: float | None = None
    ms_predicted: float | None = None
    ms_measured: float | None = None
    loss_predicted: float | None = None
    loss_measured: float | None = None


class Alternative(Data):
    """An option that a site could have had instead, all else as in the plan.

    ``changes``: of the estimated costs, in their units, and of ``loss``, in the report's ``losses_in`` as the search counts them; negative is less. ``worth``: what
    the costs that it saves (or, of a ``milder`` one, adds) are worth in losses at the plan's prices; ``None`` where losing more would buy nothing.
    ``reason`` it was not taken: ``price``: it takes more than it gives; ``limit``: it would break the limit on ``quantity``; ``whole``: it goes only with all
    channels, or these only without it; ``estimate``: on paper it would have been better, but plans are chosen among those that were measured.
    """

    label: str
    milder: bool
    changes: dict[str, float]
    worth: float | None
    reason: Literal["price", "limit", "whole", "estimate"]
    quantity: str = ""


class Price(Data):
    """What a ``step`` more of one budget would buy, by the estimates, corrected from the measured trials.

    ``quantity``: a budgeted one, or ``loss``: what the allowed drop limits. Losses are in the report's ``losses_in``, before recovery, as the search counts them (where
    training follows and shapes change, rounding several times: see ``search.strategies.allocate``). ``limit``: ``None`` where none was set: then the step is from the
    plan's own value, ``used``. ``worth``: loss that one unit is worth, from the linear relaxation's multipliers. ``buys``: changes of the costs at the
    same loss, solved again. ``loss_change``: at the same value of what is minimised, solved again; ``drop_change``: that share of the drop of what
    was delivered. ``binds``: whether the limit is in the way of anything.
    """

    quantity: str
    limit: float | None
    used: float
    step: float
    binds: bool
    worth: float | None = None
    buys: dict[str, float] = {}
    loss_change: float | None = None
    drop_change: float | None = None


class DecisionRecord(Data):
    """What a site became, and why. ``label``: the option as ``considered`` and ``alternatives`` name theirs, with what differs from the defaults.

    ``considered``: the labels of the other options with their predicted loss, best first. ``alternatives``: the closest contender
    that loses less and the closest that loses more.
    """

    site: str
    op: str
    method: str
    label: str = ""
    options: dict[str, Any]
    why: str
    before: str = ""
    after: str = ""
    bits: int | None = None
    width: tuple[int, int] | None = None
    rank: int | None = None
    cost: Cost = Cost()
    considered: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


class GroupDrop(Data):
    """What a class or a slice lost, in metric units. ``of``: how many there are; ``lower_95``: with 95 % confidence none of these lies below its own
    (Bonferroni); ``upper_95``: of this one alone, which is all that "none lost more" takes (an intersection-union test)."""

    label: str
    samples: int
    observed: float
    lower_95: float
    upper_95: float
    of: int


class Disturbed(Data):
    """Quality of the original and of the artefact on the same disturbed samples; the empty name is undisturbed."""

    name: str
    before: float
    after: float
    samples: int


class CloseUp(Data):
    """What compression changed for single samples and groups of them. Qualities and drops in metric units.

    ``lost``, ``won``: indices (from 0, in the user's ``split``) of samples that only the original, and only the artefact, gets right; of scores of 0 and 1.
    ``classes``, ``slices``: those that lost most, the worst first. ``calibration``: expected calibration error before and after.
    """

    split: str = "holdout"
    samples: int
    before: float
    after: float
    lost: tuple[int, ...] = ()
    won: tuple[int, ...] = ()
    classes: tuple[GroupDrop, ...] = ()
    slices: tuple[GroupDrop, ...] = ()
    calibration: tuple[float, float] | None = None
    disturbed: tuple[Disturbed, ...] = ()


class Prediction(Data):
    """Predicted against measured loss (output divergence before recovery) of one stitched candidate."""

    plan: str
    predicted: float
    measured: float


class Predictions(Data):
    candidates: tuple[Prediction, ...] = ()
    rank_correlation: float | None = None
    size_error: float | None = None
    """Mean relative error of the predicted bytes over the trials, ``None`` without trials."""
    latency_error: float | None = None


class ArtefactFile(Data):
    file: str
    sha256: str


class Refused(Data):
    where: str
    reason: str


class ClassLoss(Data):
    """What one class lost, observed on its ``samples``."""

    label: int
    samples: int
    drop: float


class Elsewhere(Data):
    """What a plan made for ``classes`` alone costs on the holdout samples of all others; without ``samples`` it could not be measured.

    ``weighted``: it is for samples as the task's ``sample_weights`` weigh them (of all classes, where ``classes`` is empty), and the others are those left out. ``worst``: the classes that lost most, first. The limits are one-sided at 95 %, of a measurement that nothing was chosen by.
    """

    classes: tuple[int, ...]
    weighted: bool = False
    samples: int = 0
    before: float | None = None
    after: float | None = None
    drop: float | None = None
    lower_95: float | None = None
    upper_95: float | None = None
    worst: tuple[ClassLoss, ...] = ()


class Schedule(Data):
    """What ``--time`` was turned into at the start. Seconds are of the wall clock. ``samples_loss``: that losses are measured on, where there are as many."""

    seconds: float
    samples_loss: int
    candidates: int
    recovery_steps: int
    finalists: int
    schedule_truncated: bool = False
    spent: dict[str, float] = {}


class Report(Data):
    """The content of ``report.json``. Every quality, drop, agreement and fidelity is a fraction in metric units."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_number: Literal[1] = pydantic.Field(default=1, alias="schema")
    slimline: str
    verdict: Verdict
    sentence: str
    interrupted: bool = False
    model: str
    target: str
    device: str
    metric: str
    minimize: Quantity
    seed: int
    command: str
    schedule: Schedule
    budget: dict[str, Any]
    baseline: Measurement
    compressed: Measurement | None
    ratio: dict[str, float] = {}
    compression_ratio: float | None = None
    drop: DropInterval | None
    certificate: Certificate | None
    elsewhere: Elsewhere | None = None
    """Where the plan is for some classes only: what it costs on the others. Quality, drop and certificate are of its own classes then."""
    agreement: Agreement | None
    fidelity: Agreement | None
    references: dict[str, Reference] = {}
    pareto: tuple[Point, ...] = ()
    archive_stages: tuple[ArchiveStage, ...] = ()
    """Where the download is minimised and there was time to train for it."""
    decisions: tuple[DecisionRecord, ...] = ()
    refused: tuple[Refused, ...] = ()
    predictions: Predictions = Predictions()
    prices: tuple[Price, ...] = ()
    losses_in: str = "nats"
    """The unit of losses: ``nats`` of class scores, ``relative squared error`` of values."""
    cheaper: int | None = None
    """Measured trials that met every other limit at a better objective: the allowed drop was in their way. ``None``: not counted."""
    close_up: CloseUp | None = None
    artefact: ArtefactFile | None
    not_checked: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    obstacles: tuple[str, ...] = ()
    """What stood in the way, where the verdict is not ``pass``."""

    def _repr_html_(self) -> str:
        """What Jupyter shows. How reports look is a higher layer's, so it is found by name, like every plug-in."""
        return str(importlib.import_module("slimline.report.notebook").render(self))


class Stopped(Data):
    """A target for which nothing could be delivered, and why."""

    target: str
    error: str
    exit_code: int


class Comparison(Data):
    """The content of ``report.json`` after a run for several targets."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_number: Literal[1] = pydantic.Field(default=1, alias="schema")
    runs: tuple[Report, ...]
    stopped: tuple[Stopped, ...] = ()


def ratios(baseline: Measurement, compressed: Measurement) -> dict[str, float]:
    """Baseline over compressed, per quantity: above 1 is better."""
    pairs = {name: (getattr(baseline, name), getattr(compressed, name)) for name in QUANTITY_FIELDS}
    pairs["latency_ms"] = (baseline.latency_ms.median, compressed.latency_ms.median)
    return {name: a / b for name, (a, b) in pairs.items() if a is not None and b}
