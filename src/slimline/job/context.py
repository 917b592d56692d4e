"""Everything that a job has at hand: the model, its samples, its target, its memory and its clock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.contracts import Target, Task
from slimline.core.device import Device
from slimline.core.plan import Fingerprint, Method, Plan
from slimline.core.progress import Progress
from slimline.core.registry import find, registered
from slimline.core.request import Request
from slimline.core.samples import Samples
from slimline.errors import DataError, OutputError, UsageError
from slimline.measure import quality
from slimline.model.recover import check_device, evaluate
from slimline.report.finished import added
from slimline.search.schedule import Clock
from slimline.search.sensitivity import TEXT_SAMPLES
from slimline.search.strategies.replay import check_replayable
from slimline.store.cache import Cache, fingerprint
from slimline.store.journal import FILE, Journal, check_free
from slimline.store.private import STATE as STATE
from slimline.targets._device import on_device

if TYPE_CHECKING:
    from slimline.job.workers import Shared

CALIBRATION = 512
NOT_ASKED = {"out", "shared", "resume", "force", "command", "started", "dry_run", "model_name", "workers", "ray", "reference"}  # may differ when a run goes on
SPELLED = {
    "seconds": "time", "size_bytes": "max-size", "download_bytes": "max-download", "memory_bytes": "max-memory", "latency_ms": "max-latency", "macs": "max-macs",
    "references_full": "references",
}  # fmt: skip
ASKED = ("SLIMLINE_ONNXRUNTIME_PROVIDER", "SLIMLINE_TORCH_COMPILE")
PRODUCTS = ("plan.json", "plan.safetensors", "report.json", "report.md", "report.html", "manifest.json", "operations.json", "program.pt2", "stored.pt2")


class Source(Task, Protocol):
    """A task that also says what it is called and where its holdout comes from."""

    @property
    def name(self) -> str: ...
    @property
    def holdout_source(self) -> str | None: ...
    def model(self) -> nn.Module: ...


@dataclass
class Job:
    """One run. ``evaluation`` chooses between candidates, ``calibration`` sets ranges; they never overlap. ``classes``: the outputs are class scores, not values."""

    request: Request
    source: Source
    progress: Progress
    target: Target
    model: nn.Module
    example: Samples
    usual: Samples  # what latencies and multiply-adds are of; where padding can be cut a text of the usual length
    longest: Samples  # what memory is for
    train: Samples | None
    calibration: Samples | None
    evaluation: Samples | None
    metric_name: str
    metric: quality.Metric
    classes: bool
    texts: Samples  # by which lengths of texts are measured: nothing is fitted to them, and those to train on can be shorter
    fingerprint: Fingerprint
    journal: Journal
    cache: Cache
    clock: Clock
    methods: Mapping[str, type[Method]]
    notes: list[str] = field(default_factory=list)
    truncated: bool = False  # whether the clock cut off something that the schedule held
    spent: dict[str, float] = field(default_factory=dict)
    workers: Shared | None = None  # where there are some
    made_folder: bool = False  # the output folder was not there before

    @property
    def directory(self) -> Path:
        return self.request.out

    @property
    def base_plan(self) -> Plan:
        return Plan(model=self.fingerprint, seed=self.request.seed)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        """The task's loss; ``None``: distillation only."""
        return None if targets is None else self.source.loss(outputs, targets)

    def note(self, text: str) -> None:
        """Something for the report's list of what was not checked, and for the screen."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress.note(text)

    def cut(self, text: str) -> None:
        """Something that the clock cut off: noted, and the schedule counts as truncated."""
        self.truncated = True
        self.note(text)

    def score(self, outputs: Any, samples: Samples, original: Any) -> tuple[float, torch.Tensor | None]:
        """Quality and per-sample scores; unlabelled samples are held against the original's outputs."""
        targets = samples.targets if samples.targets is not None else original
        return quality.evaluate(self.metric, outputs, targets)

    def model_quality(self, model: Callable[..., Any], samples: Samples, original: Any, *, bf16: bool = False) -> tuple[float, torch.Tensor | None]:
        """Of a torch model on ``samples``."""
        return self.score(evaluate(model, samples, bf16=bf16), samples, original)


def open_job(source: Source, request: Request, progress: Progress) -> Job:
    """Load and check everything that the user gave, then open the output folder.

    Raises:
        SlimlineError: whatever the user can mend, before anything is written.
    """
    target_class = find("targets", request.target)
    target_class.require()
    device = Device.load(request.device)
    target = on_device(target_class(), device)
    if device.targets and device.latency is None and request.budget.latency_ms is not None:
        raise UsageError(f"--max-latency: {device.name} has no latency table.", hint=f'Measure one: slimline devices calibrate {device.name} --run "CMD".')
    find("strategies", request.strategy)
    check_device(request.train_device)
    model = source.model()
    splits = {name: source.data(name) for name in ("train", "search")}
    example = source.example()
    if hasattr(source, "slices"):
        source.slices("holdout")  # what is wrong with them is told now, not at the end
    calibration, evaluation = _parts(splits["train"], splits["search"], request.seed)
    few = (evaluation or calibration or example)[:8]
    outputs = evaluate(model, few)
    metric_name, metric = quality.chosen(request.metric, source, lambda: outputs, few.targets)
    mark = fingerprint(model, {"data": _thumb(splits["search"] or splits["train"] or example)})
    if request.plan is not None:
        check_replayable(request.plan, mark)
    check_directory(request)
    made_folder = not request.out.exists()
    request.out.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(request.out / STATE, _header(source, request, mark), resume=request.resume)
    clock = Clock(request.seconds, request.started, journal.spent if request.resume else 0.0)
    job = Job(
        request=request,
        source=source,
        progress=progress,
        target=target,
        model=model,
        example=example,
        usual=example,
        longest=example,
        train=splits["train"],
        calibration=calibration,
        evaluation=evaluation,
        metric_name=metric_name,
        metric=metric,
        classes=quality.are_class_scores(metric_name, outputs, few.targets),
        texts=(evaluation or calibration or example)[:TEXT_SAMPLES],
        fingerprint=mark,
        journal=journal,
        cache=Cache((request.shared or request.out) / STATE / "cache"),
        clock=clock,
        methods=methods_of(request),
        made_folder=made_folder,
    )
    for text in (*getattr(source, "notes", ()), *_whose_latency(device)):
        job.note(text)
    return job


def _header(source: Source, request: Request, mark: Fingerprint) -> dict[str, Any]:
    """What a run that goes on must have been asked for, too, in the words of who asks."""
    fields = request.model_dump(mode="json", exclude=NOT_ASKED)
    fields |= fields.pop("budget")
    return {
        "model": {"the model": mark.architecture, "its weights": mark.weights, "the data": mark.data},
        "task": source.name,
        "request": {f"--{SPELLED.get(name, name.replace('_', '-'))}": value for name, value in fields.items()},
    }


def _whose_latency(device: Device) -> tuple[str, ...]:
    """What must be said where the latencies are not those of the machine that is compressed for."""
    if not device.targets:
        return ()
    if device.latency is None:
        return (f"latency on {device.name}: the figures are of this machine, for it has no latency table (slimline devices calibrate)",)
    return (f"latency on {device.name}: every figure is an estimate from its table ({device.latency.source})",)


def take_away(job: Job) -> None:
    """Remove the traces of a run that came to nothing: the mended command finds the output folder as this one did."""
    shutil.rmtree(job.directory / STATE, ignore_errors=True)
    if job.made_folder:
        with contextlib.suppress(OSError):  # somebody else has put something there
            job.directory.rmdir()


def methods_of(request: Request) -> dict[str, type[Method]]:
    """The methods that may be used, by name; ``keep`` always.

    Raises:
        UsageError: there is none of a name.
    """
    known = registered("methods")
    for name in (*request.methods, *request.without):
        find("methods", name)
    wanted = set(request.methods or known) - set(request.without) | {"keep"}
    return {n: m for n, m in known.items() if n in wanted}


def _parts(train: Samples | None, search: Samples | None, seed: int) -> tuple[Samples | None, Samples | None]:
    """Calibration from ``train``; from one half of ``search`` only where there is no ``train``."""
    generator = torch.Generator().manual_seed(seed)
    if train is not None:
        return train[torch.randperm(len(train), generator=generator)[:CALIBRATION]], search
    if search is None:
        return None, None
    if len(search) < 4:
        return search, search
    order = torch.randperm(len(search), generator=generator)
    half = len(search) // 2
    return search[order[:half].sort().values][:CALIBRATION], search[order[half:].sort().values]


def _thumb(samples: Samples) -> torch.Tensor:
    """What stands for the data in the fingerprint: counts and the first samples' bytes."""
    parts = [
        t[:64].detach().reshape(-1).view(torch.uint8) if t.numel() else t.new_zeros(0, dtype=torch.uint8) for t in (s.contiguous() for s in samples.tensors)
    ]
    return torch.cat([torch.tensor([len(samples)], dtype=torch.int64).view(torch.uint8), *parts])


def check_directory(request: Request) -> None:
    """An output folder is empty, or ours to resume or to replace."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file.", hint="Give a folder to --out.")
    if request.resume:
        if not (out / STATE / FILE).exists():
            raise UsageError(f"There is no run to resume in {out}.", hint="Leave --resume out.")
        return
    check_free(out, force=request.force)
    held = [p.name for p in out.iterdir()] if out.exists() else []
    own = {*PRODUCTS, STATE, *added(out), *_as_written(out), *(n for n in held if n.startswith("model."))}
    foreign = sorted(set(held) - own)
    if foreign and not (out / STATE).exists():
        raise OutputError(f"{out} holds {', '.join(foreign[:3])}, which Slimline did not make.", hint="Give another --out.")
    for name in set(held) & own:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _as_written(out: Path) -> set[str]:
    """Files of a run that are as its manifest has them: a tokenizer that lay beside its model goes when the model goes."""
    try:
        files = json.loads((out / "manifest.json").read_bytes())["files"]
        ours = {n: out / n for n in files if Path(n).name == n and (out / n).is_file() and (out / STATE).is_dir()}
        return {n for n, file in ours.items() if sha256(file.read_bytes()) == files[n]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def environment() -> dict[str, str]:
    """Versions and the machine, for the report and the manifest."""
    import importlib.metadata

    found = {"python": platform.python_version(), "machine": platform.machine(), "processor": _processor(), "cores": str(os.cpu_count())}
    found |= {name: os.environ[name] for name in sorted(os.environ) if name in ASKED and os.environ[name]}  # what changes how a runtime runs
    for package in ("slimline", "torch", "onnx", "onnxruntime", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def flat(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The tensors of an output pytree."""
    return tuple(t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor))


def as_outputs(tensors: tuple[torch.Tensor, ...], original: Any) -> Any:
    """Flat outputs of an artefact in the original's own structure; what is no tensor there (``None``, a name) stays.

    Example:
        >>> as_outputs((torch.ones(1),), {"logits": torch.zeros(1), "attention": None})
        {'logits': tensor([1.]), 'attention': None}

    Raises:
        DataError: the counts differ.
    """
    leaves, spec = _pytree.tree_flatten(original)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    if len(places) != len(tensors):
        raise DataError(f"The artefact has {len(tensors)} outputs, the model {len(places)}.")
    given = dict(zip(places, tensors, strict=True))
    return _pytree.tree_unflatten([given.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
