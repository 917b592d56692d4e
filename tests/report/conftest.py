"""Reports as runs leave them: a ResNet-20 with everything known, one cut off early, one without data, one with hostile names."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from slimline.core.budget import Violation
from slimline.core.result import (
    Alternative,
    ArtefactFile,
    Certificate,
    CloseUp,
    Cost,
    DecisionRecord,
    Disturbed,
    DropInterval,
    GroupDrop,
    Point,
    Prediction,
    Predictions,
    Price,
    Reference,
    Refused,
    Report,
    Schedule,
    SequenceStep,
    ratios,
)
from slimline.core.trial import Agreement, Latency, Measurement
from slimline.report.sentence import obstacle_texts, sentence

STAGES = ((16, 0), (32, 1), (64, 2))
HOSTILE = "</script><img src=x onerror=\"alert('1')\">`|\n&amp;"


def _measured(kind: type[Measurement], size: int, ms: float, quality: float | None, **more: Any) -> Any:
    fields = {
        "size_bytes": size, "download_bytes": int(0.91 * size), "download_codec": "zstd -19", "memory_bytes": int(1.4 * size) + 90_000, "rss_bytes": 80_000_000,
        "parameters": 269_722, "macs": 40_551_424, "latency_ms": Latency(median=ms, p95=1.12 * ms, runs=4_100), "quality": quality,
    }  # fmt: skip
    return kind(**{**fields, **more})


def _layers() -> list[tuple[str, tuple[int, ...], float]]:
    """Name, shape and float milliseconds of ResNet-20's 19 convolutions, two of a shortcut, and the classifier."""
    found: list[tuple[str, tuple[int, ...], float]] = [("stem.weight", (16, 3, 3, 3), 0.018)]
    inputs = 16
    for width, stage in STAGES:
        for block in range(3):
            found += [
                (f"stages.{stage}.{block}.conv1.weight", (width, inputs, 3, 3), 0.036),
                (f"stages.{stage}.{block}.conv2.weight", (width, width, 3, 3), 0.038),
            ]
            if inputs != width:
                found.append((f"stages.{stage}.{block}.shortcut.0.weight", (width, inputs, 1, 1), 0.009))
            inputs = width
    return [*found, ("head.weight", (10, 64), 0.002)]


def _weights(draw: random.Random) -> list[DecisionRecord]:
    records = []
    for i, (name, shape, ms) in enumerate(_layers()):
        removed = name.startswith("stages.2.1.")
        bits = None if removed else 32 if name.startswith("head") else 4 if shape[0] == 64 else 8
        rank = 8 if name == "stages.2.0.shortcut.0.weight" else None
        kept = shape if shape[0] != 64 or removed or "conv1" not in name else (48, *shape[1:])
        count = 1
        for n in shape:
            count *= n
        after = 0 if removed else int(count * kept[0] / shape[0] * (bits or 0) / 8) + 4 * kept[0]
        loss = 0.0 if removed else draw.uniform(1e-5, 8e-3)
        method = "removed" if removed else "keep" if bits == 32 else "low_rank" if rank else "static_int8" if i % 5 else "weight_only"
        records.append(DecisionRecord(
            site=name, op="linear" if name.startswith("head") else "conv2d", method=method, options={} if method in ("removed", "keep") else {"bits": bits, "range": "mse", "weight_range": "mse"},
            why="it lies in a block that is dropped" if removed else f"it loses {loss:.2g} nats, {draw.randint(1, 9)} % of what the plan loses before recovery; the next step, static_int8(bits=2), would lose {9 * loss:.2g}",
            before=" x ".join(map(str, shape)), after="removed" if removed else " x ".join(map(str, kept)), bits=bits, rank=rank,
            cost=Cost(
                bytes_before=4 * count, bytes_predicted=after, bytes_measured=after, ms_before=ms, ms_predicted=None if removed else 0.5 * ms, ms_measured=0.0 if removed else ms * draw.uniform(0.3, 0.6),
                loss_predicted=loss,
            ),
            alternatives=() if removed else (
                Alternative(label="static_int8", milder=True, changes={"size": 2_100.0, "latency": 0.0, "loss": -0.004}, worth=0.009, reason="price"),
                Alternative(label="static_int8(bits=2)", milder=False, changes={"size": -1_200.0, "latency": 0.0, "loss": 9 * loss}, worth=0.005, reason="price"),
            ),
            considered=() if removed else ("keep: loss 0", "static_int8: loss 2.5e-06", f"static_int8(bits=2): loss {9 * loss:.2g}"),
        ))  # fmt: skip
    return records


def _others(draw: random.Random) -> list[DecisionRecord]:
    """Seven blocks and twelve groups of channels."""
    blocks = [f"stages.{s}.{b}#block" for s in range(3) for b in range(3) if b or not s][:7]
    channels = [
        "stem#channels",
        *(f"stages.{s}.{b}.conv1#channels" for s in range(3) for b in range(3)),
        "stages.1.0.conv2#channels",
        "stages.2.0.conv2#channels",
    ]
    records = []
    for name in blocks:
        gone = name == "stages.2.1#block"
        why = (
            "dropping the whole block removes all its time and bytes; it loses 0.21 nats, 38 % of what the plan loses before recovery"
            if gone
            else "everything else costs more quality than it saves: the mildest, block_drop, loses 5.8 nats"
        )
        records.append(
            DecisionRecord(
                site=name,
                op="block",
                method="block_drop" if gone else "keep",
                options={},
                why=why,
                before="present",
                after="removed" if gone else "present",
                cost=Cost(loss_predicted=0.21 if gone else 0.0),
            )
        )
    for name in channels:
        width = 64 if "stages.2" in name else 32 if "stages.1" in name else 16
        kept = 48 if name.startswith(("stages.2.0", "stages.2.2")) and "conv1" in name else width
        records.append(DecisionRecord(
            site=name, op="channels", method="channel_prune" if kept < width else "keep", options={"keep": 0.75, "multiple": 16, "importance": "taylor"} if kept < width else {},
            why=f"it loses {draw.uniform(0.01, 0.09):.2g} nats" if kept < width else "everything else costs more quality than it saves", before=f"{width} channels", after="removed" if name.startswith("stages.2.1") else f"{kept} channels", width=(width, kept),
            cost=Cost(loss_predicted=draw.uniform(0.01, 0.09) if kept < width else 0.0),
        ))  # fmt: skip
    return records


def _points(draw: random.Random) -> tuple[Point, ...]:
    raw = []
    for i in range(24):
        size, ms = int(draw.uniform(120_000, 420_000)), draw.uniform(0.22, 0.42)
        drop = max(-0.004, 0.05 * (150_000 / size) ** 2 * (0.3 / ms) + draw.uniform(-0.01, 0.02)) if i else 0.61
        raw.append((size, ms, drop))
    raw.append((214_806, 0.262, 0.0036))
    front = [a for a in raw if not any(all(x <= y for x, y in zip(b, a, strict=True)) and b != a for b in raw)]
    return tuple(
        Point(
            plan=f"{1_000_003 * (i + 17):016x}", label=f"{12 + i % 7} x static_int8 8 bits, {7 - i % 5} x static_int8 4 bits, 1 x block_drop", size_bytes=s, latency_ms=ms, memory_bytes=390_000, macs=33_000_000,
            quality=0.877 - d, drop=d, chosen=i == 24, on_front=(s, ms, d) in front, fidelity=Agreement(top1=0.951, cosine=0.9931, max_abs=2.9) if i == 24 else None,
        )
        for i, (s, ms, d) in enumerate(raw)
    )  # fmt: skip


def _predictions(draw: random.Random) -> Predictions:
    pairs = [(p := 10 ** draw.uniform(-3.5, 0.3), p * 10 ** draw.gauss(0.08, 0.16)) for _ in range(22)]
    candidates = tuple(Prediction(plan=f"{7_919 * (i + 3):016x}", predicted=p, measured=m) for i, (p, m) in enumerate(pairs))
    return Predictions(candidates=candidates, rank_correlation=0.946, size_error=0.021, latency_error=0.078)


PRICES = (
    Price(
        quantity="size", limit=300_000, used=214_000, step=30_000, binds=False, worth=4e-7, buys={"size": 0.0, "latency": 0.0}, loss_change=0.0, drop_change=0.0
    ),
    Price(quantity="latency", limit=None, used=0.26, step=0.026, binds=False, worth=1.4, loss_change=-0.021, drop_change=-0.0034),
    Price(quantity="loss", limit=None, used=0.11, step=0.011, binds=True, worth=1.0, buys={"size": -4_100.0, "latency": -0.006}),
)


def _close_up() -> CloseUp:
    """Ten classes, two ways of slicing, 190 samples lost."""
    classes = tuple(
        GroupDrop(label=str(k), samples=500, observed=0.014 - 0.002 * k, lower_95=-0.004 - 0.002 * k, upper_95=0.03 - 0.002 * k, of=10) for k in range(10)
    )
    slices = tuple(
        GroupDrop(label=f"light: {n}", samples=c, observed=d, lower_95=d - 0.01, upper_95=d + 0.01, of=2)
        for n, c, d in (("night", 700, 0.012), ("day", 4_300, 0.002))
    )
    shaken = tuple(
        Disturbed(name=n, before=b, after=a, samples=2_000)
        for n, b, a in (("", 0.877, 0.873), ("noise", 0.871, 0.861), ("blur", 0.802, 0.799), ("contrast", 0.87, 0.866))
    )
    return CloseUp(
        samples=5_000,
        before=0.8771,
        after=0.8733,
        lost=tuple(range(3, 4_940, 26)),
        won=tuple(range(5, 4_940, 29)),
        classes=classes,
        slices=slices,
        calibration=(0.031, 0.047),
        disturbed=shaken,
    )


def make(**changes: Any) -> Report:
    """A ResNet-20 that passed; ``changes`` replace fields, and the sentence follows."""
    draw = random.Random(0)
    baseline = _measured(Measurement, 1_165_020, 0.743, 0.8771)
    compressed = _measured(Measurement, 214_806, 0.262, 0.8733, parameters=176_410, macs=32_440_320)
    references = {
        "plain int8": _measured(
            Reference, 373_402, 0.343, 0.8768, note="QDQ, MinMax, per channel; of 12 settings", fidelity=Agreement(top1=0.981, cosine=0.9991, max_abs=0.8)
        ),
        "uniform pruning": _measured(Reference, 217_300, 0.340, 0.8121, parameters=135_204, macs=20_330_000, note="30 % of every set of channels, and int8"),
        "static_int8 alone": _measured(Reference, 262_100, 0.338, 0.8702, fidelity=Agreement(top1=0.962, cosine=0.9951, max_abs=1.9)),
    }
    fields: dict[str, Any] = {
        "slimline": "0.1.0", "verdict": "pass", "model": "resnet20_cifar10", "target": "onnxruntime", "device": "host", "metric": "top1", "minimize": "latency", "seed": 0,
        "command": "slimline compress resnet20_cifar10.py --target onnxruntime --max-drop 1% --time 10m --out build/",
        "schedule": Schedule(
            seconds=600.0, samples_loss=512, candidates=24, recovery_steps=2_400, finalists=3,
            spent={"looking at the model": 7.2, "measuring options": 61.0, "timing layers": 22.5, "trying candidates": 88.1, "recovering": 301.3, "certifying on the holdout": 9.0, "measuring references": 41.2},
        ),
        "budget": {"size_bytes": 300_000, "latency_ms": None, "max_drop": {"value": 0.01, "relative": False, "percent": True}, "minimize": "latency", "batch": 1, "threads": 1},
        "baseline": baseline, "compressed": compressed, "ratio": ratios(baseline, compressed), "compression_ratio": compressed.size_bytes / baseline.size_bytes,
        "drop": DropInterval(observed=0.0038, lower_95=0.0004, upper_95=0.0074, allowed=0.01, samples=5_000),
        "certificate": Certificate(source="user", test="score interval for paired proportions (Tango 1998)", sequence=(
            SequenceStep(plan=f"{1:016x}", observed=0.0012, upper_95=0.0041, passed=True), SequenceStep(plan=f"{2:016x}", observed=0.0038, upper_95=0.0074, passed=True),
            SequenceStep(plan=f"{3:016x}", observed=0.0091, upper_95=0.0131, passed=False),
        )),
        "agreement": Agreement(top1=0.9998, cosine=0.99997, max_abs=0.061), "fidelity": Agreement(top1=0.951, cosine=0.9931, max_abs=2.9), "references": references, "pareto": _points(draw),
        "decisions": (*_others(draw), *_weights(draw)), "refused": (Refused(where="head#channels", reason="its channels are an output of the model"), Refused(where="stages.1.0#block", reason="its input and output differ in shape")),
        "predictions": _predictions(draw), "prices": PRICES, "cheaper": 4, "close_up": _close_up(), "artefact": ArtefactFile(file="model.onnx", sha256="512a5fb9460cbac9da347667ca90e0de55ff5a36fb1280e7241422c2cf3f0449"),
        "not_checked": ("latency on any machine but this one", "the reference weight_only alone: no time was left"),
        "environment": {"python": "3.11.7", "machine": "x86_64", "processor": "a processor", "cores": "2", "slimline": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.32.0"},
    }  # fmt: skip
    fields |= changes
    fields.setdefault("sentence", sentence(fields["verdict"], fields["baseline"], fields["compressed"], fields["drop"], fields.get("obstacles", ())))
    return Report(**fields)


def without_data() -> Report:
    """No data at all: no quality anywhere, and so no drop, no certificate and no predictions."""
    full = make()
    assert full.compressed is not None
    blank = {"quality": None}
    return make(
        verdict="inconclusive", baseline=full.baseline.model_copy(update=blank), compressed=full.compressed.model_copy(update=blank), drop=None, certificate=None, agreement=None, fidelity=None,
        prices=tuple(p.model_copy(update={"drop_change": None}) for p in PRICES), cheaper=0, close_up=None, references={}, pareto=tuple(p.model_copy(update={**blank, "drop": None, "fidelity": None}) for p in full.pareto), predictions=Predictions(), not_checked=("whether quality was kept: there is no data to measure it on",),
    )  # fmt: skip


def cut_off() -> Report:
    """Interrupted before anything was found."""
    return make(
        verdict="inconclusive", interrupted=True, compressed=None, ratio={}, compression_ratio=None, drop=None, certificate=None, agreement=None, fidelity=None, references={}, pareto=(), decisions=(), prices=(), cheaper=None, close_up=None,
        refused=(), predictions=Predictions(), artefact=None, obstacles=("the run was interrupted before a candidate was measured",), environment={}, not_checked=(),
    )  # fmt: skip


def failed() -> Report:
    """A drop beyond the allowance and a latency that was not reached."""
    compressed = make().compressed
    assert compressed is not None
    drop = DropInterval(observed=0.0312, lower_95=0.0262, upper_95=0.0363, allowed=0.01, samples=5_000)
    return make(
        compressed=compressed.model_copy(update={"quality": 0.8459}),
        verdict="fail", drop=drop, obstacles=obstacle_texts([Violation(quantity="latency", value=0.262, limit=0.2)], False, drop, 0.8771),
        certificate=Certificate(source="from_search", test="exact test", sequence=(SequenceStep(plan="a" * 16, observed=0.0312, upper_95=0.0363, passed=False),)),
    )  # fmt: skip


def hostile() -> Report:
    """Every string that comes from outside tries to break out of the page."""
    full = make()
    return make(
        model=HOSTILE, target=HOSTILE, device=HOSTILE, metric=HOSTILE, command=HOSTILE, sentence=HOSTILE, obstacles=(HOSTILE,), not_checked=(HOSTILE,), environment={HOSTILE: HOSTILE},
        decisions=tuple(d.model_copy(update={"site": HOSTILE, "method": HOSTILE, "op": d.op, "why": HOSTILE, "before": HOSTILE, "after": HOSTILE, "options": {HOSTILE: HOSTILE}, "considered": (HOSTILE,), "alternatives": tuple(a.model_copy(update={"label": HOSTILE}) for a in d.alternatives)}) for d in full.decisions),
        pareto=tuple(p.model_copy(update={"label": HOSTILE, "plan": HOSTILE}) for p in full.pareto), references={HOSTILE: full.references["plain int8"].model_copy(update={"note": HOSTILE})},
        refused=(Refused(where=HOSTILE, reason=HOSTILE),), artefact=ArtefactFile(file=HOSTILE, sha256=HOSTILE),
        predictions=full.predictions.model_copy(update={"candidates": tuple(p.model_copy(update={"plan": HOSTILE}) for p in full.predictions.candidates)}),
        schedule=full.schedule.model_copy(update={"spent": {HOSTILE: 3.0}}),
        close_up=_close_up().model_copy(update={"split": HOSTILE, "classes": tuple(g.model_copy(update={"label": HOSTILE}) for g in _close_up().classes), "disturbed": tuple(d.model_copy(update={"name": HOSTILE}) for d in _close_up().disturbed)}),
    )  # fmt: skip


REPORTS: dict[str, Callable[..., Report]] = {"full": make, "failed": failed, "no data": without_data, "cut off": cut_off, "hostile": hostile}


@pytest.fixture
def report() -> Report:
    return make()


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """``make_report(verdict="fail", ...)``: the full report with other fields."""
    return make


@pytest.fixture(params=list(REPORTS))
def any_report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]()


@pytest.fixture
def reports() -> dict[str, Report]:
    return {name: build() for name, build in REPORTS.items()}


@pytest.fixture
def hostile_text() -> str:
    return HOSTILE
