"""The main job, one straight line: a task and a model in, a measured and certified artefact with its reasons out."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slimline.core.budget import Budget, parse_seconds
from slimline.core.contracts import Task
from slimline.core.data import checked
from slimline.core.heap import kept_heap
from slimline.core.interrupts import settled
from slimline.core.progress import Progress, Silent
from slimline.core.request import Request
from slimline.core.result import Report
from slimline.core.samples import Samples
from slimline.core.trial import Trial
from slimline.core.whole import written
from slimline.errors import DataError, SlimlineError, UsageError
from slimline.job.cautious import add_cautious, add_original
from slimline.job.certificate import Outcome, certify, order
from slimline.job.context import Job, Source, methods_of, open_job, take_away
from slimline.job.finalists import finished
from slimline.job.finishing import Finalist, finish
from slimline.job.found import Found
from slimline.job.full_references import recover_references
from slimline.job.measured import figures
from slimline.job.prepare import prepare
from slimline.job.recovery import objective
from slimline.job.references import Compared, final_round, references
from slimline.job.reporting import around, build_report, files_of
from slimline.job.search import search
from slimline.job.specialised import elsewhere, meant_for, specialised
from slimline.job.workers import at_work
from slimline.measure import quality
from slimline.model.sites import find_sites
from slimline.report.finished import read_run
from slimline.report.notebook import NotebookProgress, in_notebook
from slimline.report.write import write_outputs
from slimline.sources.batches import made, samples_of
from slimline.sources.splits import HoldoutSource, Origin, Splits
from slimline.sources.validate import check_model, check_sample_weights, check_slices, check_task


@dataclass(frozen=True)
class Result:
    """What ``compress`` gives: the report, and the folder that holds the artefact."""

    report: Report
    directory: Path

    def load(self) -> nn.Module:
        """The compressed model as a module that can be trained further."""
        return load(self.directory)

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        return self.report._repr_html_()


def compress(
    model: nn.Module,
    task: Task,
    *,
    target: str = "onnxruntime",
    budget: Budget = Budget(),
    time: str | float = "10m",
    out: str | Path = "build",
    methods: Sequence[str] = (),
    without: Sequence[str] = (),
    strategy: str = "allocate",
    seed: int = 0,
    metric: str = "",
    classes: Sequence[int] = (),
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compress ``model`` (trained, in eval mode) within ``budget``; ``time`` is the wall clock of the whole call; a number is in seconds.

    ``classes``: labels that the plan is for; the report says what it costs on the others.
    Without ``progress`` nothing is shown, but for a line in a notebook's output cell.

    Raises:
        SlimlineError: what must be mended; the message says how.

    Example:
        ``slimline.compress(model, task, budget=Budget(max_drop="1%"), time="5m").report.sentence``
    """
    source = _PythonTask(check_model(model), task)
    with _asked():
        request = Request(
            target=target,
            budget=budget,
            seconds=parse_seconds(str(time)),
            methods=methods,
            without=without,
            strategy=strategy,
            seed=seed,
            metric=metric,
            classes=classes,
            out=out,
            resume=resume,
            force=force,
            model_name=source.name,
            command=" ".join(map(shlex.quote, sys.argv)),
            started=clock.monotonic(),
        )
    shown = progress if progress is not None else NotebookProgress() if in_notebook() else Silent()
    with written(request.out):
        report = compress_request(source, request, shown)
    assert report is not None
    return Result(report, request.out)


def _asked() -> contextlib.AbstractContextManager[None]:
    """Around what is made of the arguments of a call from Python."""
    return checked("An argument cannot be used", "See help(slimline.compress).")


def compress_request(source: Source, request: Request, progress: Progress) -> Report | None:
    """The job behind the command line; ``None`` after a dry run."""
    with kept_heap():
        return _compressed(source, request, progress)


def _compressed(source: Source, request: Request, progress: Progress) -> Report | None:
    torch.manual_seed(request.seed)
    source = specialised(source, request.classes)
    check_task(source.model(), source)
    if request.dry_run:
        progress.found(tuple(analyze_request(source, request).splitlines()))
        return None
    job = open_job(source, request, progress)
    try:
        return _carried_out(job)
    except SlimlineError:
        if job.journal.last("trial") is None:  # nothing that --resume could go on with
            take_away(job)
        raise


def _carried_out(job: Job) -> Report:
    found: Found | None = None
    certified: tuple[Outcome, list[Finalist]] | None = None
    with job.journal, at_work(job):
        try:
            found = prepare(job)
            search(job, found)
            add_cautious(job, found)
            add_original(job, found)
            finalists = finished(job, found)
            certified = certify(job, found, order(job, found, finalists)), finalists
            return _deliver(job, found, *certified, interrupted=False)
        except KeyboardInterrupt:
            settled()
            if found is not None and certified is not None:
                job.progress.note("interrupted: the result is certified and is written, without the references")
                job.note("what the result is held against: the run was interrupted before that was measured")
                return _deliver(job, found, *certified, interrupted=True)
            if found is None or not any(t.measurement for t in found.trials):
                job.progress.note("interrupted before there was anything to deliver; --resume goes on with what was measured")
                raise
            job.progress.note("interrupted: writing the best so far")
            return _best_so_far(job, found)


def _deliver(job: Job, found: Found, outcome: Outcome, finalists: list[Finalist], *, interrupted: bool) -> Report:
    for caveat in dict.fromkeys(d.method.caveat for d in outcome.finalist.trial.plan.decisions if d.method.caveat):
        job.note(caveat)
    compared = [] if interrupted else references(job, found, outcome)
    base, result, measured = final_round(job, found, outcome, compared)
    aside = meant_for(job) if interrupted else elsewhere(job, found, outcome)
    kept = around(job, outcome)
    report = build_report(job, found, outcome, base, result, measured, finalists, interrupted=interrupted, elsewhere=aside)
    files = kept | files_of(job, found, outcome)
    write_outputs(job.directory, report, files)
    if job.request.references_full and not interrupted:
        report = _with_full_references(job, found, outcome, compared, report)
        write_outputs(job.directory, report, files)
    job.journal.append("done", {"verdict": report.verdict, "plan": outcome.finalist.trial.plan.digest}, job.clock.elapsed)
    return report


def _with_full_references(job: Job, found: Found, outcome: Outcome, compared: list[Compared], report: Report) -> Report:
    """The report once the references were trained too; interrupted meanwhile, the report as it is."""
    try:
        recovered = recover_references(job, found, outcome, compared, report.references)
    except KeyboardInterrupt:
        settled()
        job.note("--references full: interrupted; the references that are shown were not trained")
        recovered = report.references
    schedule = report.schedule.model_copy(update={"spent": dict(job.spent)})
    return report.model_copy(update={"references": recovered, "schedule": schedule, "not_checked": tuple(job.notes)})


def _best_so_far(job: Job, found: Found) -> Report:
    """What an interrupted run leaves: the best measured trial, trained or not, without a certificate."""
    tried = [t for t in [*found.trials, *found.small] if t.measurement is not None]
    base = found.baseline_measurement.quality
    allowed = 0.0 if base is None else job.request.budget.max_drop.allowed(base)

    def kept(trial: Trial) -> bool:
        trained = found.recovered.get(trial.plan.digest)
        return not [v for v in trial.violations if v.quantity != "drop" or trained is None or trained > allowed]

    good = [t for t in tried if kept(t)] or tried
    best = min(good, key=lambda t: objective(job, found, t) if kept(t) else (t.measured_loss or 0.0))
    finalist = finish(job, found, best, None)
    m = finalist.trial.measurement
    outcome = Outcome(
        finalist,
        "inconclusive",
        None,
        None,
        None,
        finalist.trial.agreement,
        m.quality if m is not None else None,
        found.baseline_measurement.quality,
        None,
        None,
        None,
    )
    job.note("the certificate: the run was interrupted; go on with --resume")
    return _deliver(job, found, outcome, [finalist], interrupted=True)


def analyze(model: nn.Module, task: Task, *, methods: Sequence[str] = (), without: Sequence[str] = ()) -> str:
    """Where ``model`` can be compressed and what is offered there, as text; nothing is measured or written. Of ``task`` only ``example`` is asked.

    Raises:
        SlimlineError: what must be mended; the message says how.

    Example:
        ``print(slimline.analyze(model, task))``
    """
    with _asked():
        request = Request(methods=methods, without=without)
    return analyze_request(_PythonTask(check_model(model), task), request)


def analyze_request(source: Source, request: Request) -> str:
    """``slimline analyze``."""
    model = source.model()
    sites, refused = find_sites(model, source.example())
    methods = methods_of(request)
    lines = [f"{source.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(sites)} sites"]
    for site in sites:
        stage = "numerics" if site.kind == "weight" else "structure"
        options = [o.label for n, m in methods.items() if site.kind in m.kinds and m.stage == stage for o in m.candidates(site)]
        lines.append(f"  {site.id:44} {site.op:10} {' x '.join(map(str, site.shape)):16} {'; '.join(options) or 'nothing is offered'}")
    lines += [f"  left alone: {r.where}: {r.reason}" for r in refused] + [f"  {note}" for note in getattr(source, "notes", ())]
    return "\n".join(lines)


def load(directory: str | Path) -> nn.Module:
    """The compressed float model of a finished run, in eval mode; it can be trained and exported again.

    Raises:
        UsageError: there is no finished run there.
        ModelError: the file is not the one that the run wrote.
    """
    import io

    from slimline.model.trace import quiet

    (content,) = read_run(Path(directory), ("program.pt2",)).values()
    with quiet():
        return torch.export.load(io.BytesIO(content)).module()


def measure(artefact: str | Path, task: Task, *, target: str = "", metric: str = "", threads: int = 1, batch: int = 1, trusted: bool = False) -> dict[str, Any]:
    """Bytes, latency and quality of an artefact file, or of the one in a folder, on a task's holdout (else search) samples: what ``slimline measure --json`` prints.

    ``target``: the runtime; empty is the first that takes the file. ``trusted``: a ``.pt2`` file, which can run code, may be opened.

    Raises:
        UsageError: there is no such file or no samples, or it is not said that the file is trusted.
        ModelError: the runtime refuses the file.

    Example:
        ``slimline.measure("build/mine", task)["latency_ms"]["median"]``
    """
    if not isinstance(artefact, str | Path):
        raise UsageError(f"The artefact is a {type(artefact).__name__}, not a path.", hint="Give a model file, or the folder of a run.")
    with _asked():
        request = Request(target=target, metric=metric, budget=Budget(batch=batch, threads=threads))
    if metric:
        quality.named(metric)
    return figures(Path(artefact), _PythonTask(None, task), "The task", request, trusted=trusted)


class _PythonTask:
    """A model, if there is one, and a task object as a source.

    Raises:
        DataError: the task is no such object.
    """

    def __init__(self, model: nn.Module | None, task: Task) -> None:
        missing = [name for name in ("example", "data") if not callable(getattr(task, name, None))]
        if missing or isinstance(task, type):
            what = f"is the class {task.__name__}" if isinstance(task, type) else f"is a {type(task).__name__} without {' and '.join(missing)}"
            raise DataError(f"The task {what}.", hint="Give an object with example() and data(split), as examples/python_api.py has one.")
        self._model = model
        self._task = task
        self.name = type(model).__name__
        self.has_metric = hasattr(task, "metric")
        self.has_sample_weights = hasattr(task, "sample_weights")
        self._given: dict[str, Samples | None] = {}
        self._splits = Splits(self.given)

    @property
    def has_model(self) -> bool:
        return self._model is not None

    def model(self) -> nn.Module:
        assert self._model is not None
        return self._model

    def example(self) -> Samples:
        found: Any = self._task.example()
        return found if isinstance(found, Samples) else made("example()", found)

    def given(self, split: str) -> Samples | None:
        """The task's own samples, asked for once; a pair or batches become ``Samples``, as in a task file."""
        if split not in self._given:
            found: Any = self._task.data(split)
            self._given[split] = found if found is None or isinstance(found, Samples) else samples_of(found, f"data({split!r})")
        return self._given[split]

    def data(self, split: str) -> Samples | None:
        return self._splits.data(split)

    def origin(self, split: str) -> Origin:
        """Where the samples of a split stand in what the task gave."""
        return self._splits.origin(split)

    @property
    def holdout_source(self) -> HoldoutSource | None:
        return self._splits.source

    def slices(self, split: str) -> dict[str, tuple[str, ...]]:
        if self.data(split) is None or not hasattr(self._task, "slices"):
            return {}
        origin = self.origin(split)
        labels = check_slices(self._task.slices(origin.split), f"slices({origin.split!r})", len(self.given(origin.split) or ()))
        return {name: origin.picked(column) for name, column in labels.items()}

    def sample_weights(self, split: str) -> torch.Tensor | None:
        if self.data(split) is None or not hasattr(self._task, "sample_weights"):
            return None
        origin = self.origin(split)
        weights = check_sample_weights(self._task.sample_weights(origin.split), f"sample_weights({origin.split!r})", len(self.given(origin.split) or ()))
        return weights if origin.index is None else weights[origin.index]

    def metric(self, outputs: Any, targets: Any) -> Any:
        return self._task.metric(outputs, targets)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor | None:
        return self._task.loss(outputs, targets) if hasattr(self._task, "loss") else None
