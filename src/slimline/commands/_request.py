"""From the options of a command to a task and a request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimline.commands._invocation import Invocation
from slimline.errors import TargetNotInstalled, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from slimline.core.request import Request
    from slimline.core.result import Report
    from slimline.sources.task_file import TaskFile


def load_task(options: dict[str, Any]) -> TaskFile:
    """The model and task, after the options that need neither were checked."""
    check_metric(options["metric"])
    _check_names(options)
    from slimline.sources.dispatch import open_source
    from slimline.trust.loading import load_weights

    weights = None if options["weights"] is None else load_weights(options["weights"])
    return open_source(options["model"], weights=weights, data=options["data"], metric=options["metric"], trusted=options.get("trust", False))


def check_metric(name: str) -> None:
    if name:
        from slimline.measure.quality import named

        named(name)


def _check_names(options: dict[str, Any]) -> None:
    from slimline.core.registry import find

    targets_of(options["targets"], options["device"])
    for name in (*options["methods"], *options["without"]):
        find("methods", name)
    if "keep" in options["without"]:
        raise UsageError("--without keep: leaving a part as it is cannot be forbidden.", hint="Leave keep out.")
    if "strategy" in options:
        find("strategies", options["strategy"])


def make_request(invocation: Invocation, source: TaskFile, options: dict[str, Any], *, several: bool = False) -> Request:
    """``several``: the command can do with more than one target; the request is then for the first."""
    from slimline.core.budget import Budget
    from slimline.core.plan import Plan
    from slimline.core.request import Reference, Request

    targets = targets_of(options["targets"], options["device"])
    if len(targets) > 1 and not several:
        raise UsageError(f"--target was given {len(targets)} runtimes ({', '.join(targets)}); this command takes one.", hint="Run it once for each.")
    asked: dict[str, Any] = {
        k: options[k] for k in ("size_bytes", "download_bytes", "memory_bytes", "latency_ms", "macs", "max_drop", "minimize") if k in options
    }
    same = {
        k: options[k]
        for k in ("device", "methods", "without", "metric", "classes", "seed", "strategy", "seconds", "train_device", "out", "resume", "force", "dry_run")
        if k in options
    }
    reference = None
    if options.get("workers") or options.get("ray"):
        files = {name: options[name] for name in ("weights", "data", "metric")}
        reference = Reference(model=str(options["model"]), trusted=options.get("trust", False), folder=Path.cwd(), **files)
    return Request(
        target=targets[0],
        budget=Budget(**_with_defaults(asked, options["device"]), batch=options["batch"], threads=options["threads"]),
        plan=None if options.get("plan") is None else Plan.read(options["plan"]),
        references_full=options.get("references") == "full",
        workers=options.get("workers") or 0,
        ray=options.get("ray", ""),
        reference=reference,
        model_name=source.name,
        command=invocation.command,
        started=invocation.started,
        **same,
    )


def _with_defaults(limits: dict[str, Any], device: str) -> dict[str, Any]:
    """The device's own where nothing was asked for."""
    from slimline.core.device import Device

    profile = Device.load(device)
    filled = {k: getattr(profile, k) if limits.get(k) is None else limits[k] for k in ("size_bytes", "memory_bytes", "minimize")}
    return {k: v for k, v in (limits | filled).items() if k != "minimize" or v is not None}


def targets_of(names: tuple[str, ...], device: str = "host") -> tuple[str, ...]:
    """The runtimes that were asked for, or the device's own; each once, all installed."""
    from slimline.core.device import Device
    from slimline.core.interpreter import not_installed
    from slimline.core.registry import find

    profile = Device.load(device)
    chosen = list(dict.fromkeys(names)) or [profile.target]
    for name in chosen:
        if profile.targets and name not in profile.targets:
            raise UsageError(f"{profile.name} does not run {name}.", hint=f"It runs {', '.join(profile.targets)}.")
    for name in chosen:
        target = find("targets", name)
        if not target.installed():
            raise TargetNotInstalled(f"The target {name} is not installed.", hint=not_installed(name, target.install))
    return tuple(chosen)


def carry_out(source: TaskFile, request: Request, console: Console, quiet: bool) -> Report | None:
    """Compress, with progress and verdict on ``console``; ``None`` after a dry run."""
    from slimline.core.progress import Silent
    from slimline.job import compress_request
    from slimline.report.terminal import LiveProgress, print_verdict

    if quiet:
        report: Report | None = compress_request(source, request, Silent())
        if report is not None:
            console.print(report.sentence, highlight=False, soft_wrap=True)
        return report
    with LiveProgress(console) as progress:
        report = compress_request(source, request, progress)
    if report is not None:
        print_verdict(report, request.out, console)
    return report
