"""What the gate judges by: the new artefact, the accepted one and the original, measured here and now, beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimline.core.registry import find
from slimline.core.result import DropInterval
from slimline.project.file import Item, Project
from slimline.project.inputs import Made, stale
from slimline.project.lock import Locked, artefact_files, locked_file, result_of
from slimline.project.run import failure

if TYPE_CHECKING:
    import torch

    from slimline.core.contracts import Artifact
    from slimline.measure.certify import Source as HoldoutSource
    from slimline.measure.classes import ClassDrop
    from slimline.sources.task_file import TaskFile

ROUNDS = 11  # of interleaved timing: the limits are then the third value from either end
ROUND_SECONDS = 0.12  # per artefact and round


@dataclass(frozen=True)
class Figures:
    """What counting gives, the same on any machine."""

    size: int
    download: int
    memory: int
    macs: int


@dataclass(frozen=True)
class Drops:
    """Quality against one other model: ``interval`` over all samples, ``classes`` where there are classes."""

    interval: DropInterval
    classes: tuple[ClassDrop, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """All about one artefact. ``same``: it is the accepted one, byte for byte. ``rounds``: (accepted, new) milliseconds, measured side by side;
    the first is ``None`` where the accepted artefact is not at hand. ``recorded_ms``: what the lock says. ``estimated``: the milliseconds are a device's, from its table. What was not measured is ``None`` or empty."""

    figures: Figures
    locked: Figures | None = None
    same: bool = False
    locked_at_hand: bool = False
    quick: bool = False
    quality: float | None = None
    source: HoldoutSource = "user"
    against_original: Drops | None = None
    against_locked: Drops | None = None
    rounds: tuple[tuple[float | None, float], ...] = ()
    recorded_ms: float | None = None
    estimated: bool = False


def missing(project: Project, item: Item) -> str:
    """Why an item has no artefact to judge, and the remedy; empty where it has one that is up to date."""
    why = stale(item, Made.read(item.out))
    if why:
        said = failure(project, item)
        return f"It is not up to date: {why}. " + (f"The last run of it failed: {said}" if said else "Run `slimline run` first.")
    report, _ = result_of(item.out)
    return "" if report.compressed is not None and report.artefact is not None else "Nothing was delivered. Loosen its budget."


def gather(project: Project, item: Item, entry: Locked | None, load: Callable[[Item], TaskFile] | None) -> Evidence:
    """Measure what the checks of an item need, whose artefact is not ``missing``. ``load``: opens its task; ``None`` for what can be counted without running anything."""
    report, _ = result_of(item.out)
    assert report.compressed is not None and report.artefact is not None
    new, old = report.compressed, entry.measured if entry is not None else None
    same = entry is not None and entry.files == artefact_files(item.out, report.artefact.file)
    figures = Figures(new.size_bytes, new.download_bytes, new.memory_bytes, new.macs)
    locked = Figures(old.size_bytes, old.download_bytes, old.memory_bytes, old.macs) if old is not None else None
    recorded = old.latency_ms.median if old is not None else None
    if load is None:
        return Evidence(figures, locked, same, quick=True, quality=report.baseline.quality, recorded_ms=recorded)
    kept = locked_file(project, item.name, entry) if entry is not None else None
    side = _Side(item, load(item))
    files = [item.out / report.artefact.file, *([kept] if kept is not None and not same else [])]
    quality, original, locked_drops = side.drops(project, files) if side.samples is not None else (None, None, None)
    timed = item.budget.max_latency is not None or (project.file.gate.latency is not None and len(files) > 1)
    rounds = side.rounds(files) if timed else []
    return Evidence(
        figures, locked, same, same or kept is not None, False, quality, side.source, original, locked_drops,
        tuple((new_ms if same else rest[0] if rest else None, new_ms) for new_ms, *rest in rounds), recorded, side.estimated,
    )  # fmt: skip


class _Side:
    """A task with its samples (of the plan's classes, where it is for some only) and its runtime."""

    def __init__(self, item: Item, task: TaskFile) -> None:
        from slimline.core.device import Device
        from slimline.job.specialised import specialised
        from slimline.targets._device import on_device

        self.item = item
        self.task = specialised(task, item.budget.classes)
        device = Device.load(item.model.device)
        self.target = on_device(find("targets", item.target)(), device)
        self.estimated = bool(device.targets) and device.latency is not None
        self.samples = self.task.data("holdout")
        self.source: HoldoutSource = task.holdout_source or "from_train"

    def opened(self, file: Path) -> Artifact:
        """The artefact with the names of its inputs and outputs."""
        from slimline.core.contracts import Artifact

        return self.target.opened(Artifact.read(self.target.name, file, self.target.beside))

    def rounds(self, files: list[Path]) -> list[tuple[float, ...]]:
        """Median milliseconds of each file, round by round; who goes first changes."""
        from slimline.model.texts import usual

        artifacts, found = [self.opened(f) for f in files], []
        example = self.task.example() if self.samples is None else usual(self.samples, self.item.budget.batch)
        for number in range(ROUNDS):
            turn = artifacts[::-1] if number % 2 else artifacts
            latencies = self.target.latency(turn, example, batch=self.item.budget.batch, threads=self.item.budget.threads, seconds=ROUND_SECONDS)
            found.append(tuple(t.median for t in (latencies[::-1] if number % 2 else latencies)))
        return found

    def drops(self, project: Project, files: list[Path]) -> tuple[float, Drops, Drops | None]:
        """The original's quality, and the first file's drops against it and against the second file; each file runs in a fresh process."""
        from slimline.job.context import as_outputs
        from slimline.measure.fresh import run_fresh
        from slimline.measure.quality import chosen, evaluate
        from slimline.model import recover

        assert self.samples is not None
        original = recover.evaluate(self.task.model(), self.samples)
        truth = self.samples.targets if self.samples.targets is not None else original
        _, metric = chosen(self.item.model.metric, self.task, lambda: original, self.samples.targets)
        outputs = [original, *(as_outputs(run_fresh(self.target, f, self.opened(f).inputs, self.samples)[0], original) for f in files)]
        results = [evaluate(metric, o, truth) for o in outputs]
        gate, quality = project.file.gate, results[0][0]
        by_class = gate.class_drop is not None or self.item.budget.max_class_drop is not None

        def between(other: int, allowed: float) -> Drops:
            from slimline.measure.certify import bootstrap_interval, drop_interval

            a, b = results[other][1], results[1][1]
            if a is None or b is None:
                return Drops(bootstrap_interval(metric, outputs[other], outputs[1], truth, allowed, self.item.budget.seed)[0])
            return Drops(drop_interval(a, b, allowed)[0], class_drops_of(a, b, truth) if by_class else ())

        against_original = between(0, self.item.budget.max_drop.allowed(quality))
        asked = gate.drop if gate.drop is not None else gate.class_drop  # by class it is the accepted artefact's as well
        return quality, against_original, between(2, asked.allowed(results[2][0])) if len(files) > 1 and asked is not None else None


def class_drops_of(a: torch.Tensor, b: torch.Tensor, truth: Any) -> tuple[ClassDrop, ...]:
    """By class, where the targets are labels ``[N]`` and the scores lie in [0, 1]."""
    import torch

    from slimline.measure.classes import class_drops

    labels = isinstance(truth, torch.Tensor) and truth.ndim == 1 and not truth.is_floating_point()
    bounded = min(float(a.min()), float(b.min())) >= 0 and max(float(a.max()), float(b.max())) <= 1
    return class_drops(a, b, truth) if labels and bounded else ()
