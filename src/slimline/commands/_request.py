"""From the options of a command to a task and a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slimline.commands._invocation import Invocation
from slimline.errors import TargetNotInstalled, UsageError

if TYPE_CHECKING:
    from slimline.core.request import Request
    from slimline.sources.task_file import TaskFile

DEVICES = ("host",)


def load_task(options: dict[str, Any]) -> TaskFile:
    """The model and task, after the options that need neither were checked."""
    check_metric(options["metric"])
    _check_names(options)
    from slimline.sources.task_file import TaskFile
    from slimline.trust.loading import load_weights

    weights = None if options["weights"] is None else load_weights(options["weights"])
    return TaskFile.load(options["model"], weights=weights, data=options["data"], metric=options["metric"])


def check_metric(name: str) -> None:
    if name:
        from slimline.measure.quality import named

        named(name)


def _check_names(options: dict[str, Any]) -> None:
    from slimline.core.registry import find

    _target(options["targets"])
    if options["device"] not in DEVICES:
        raise UsageError(f"There is no device {options['device']!r}.", hint=f"Known: {', '.join(DEVICES)}.")
    for name in (*options["methods"], *options["without"]):
        find("methods", name)
    if "keep" in options["without"]:
        raise UsageError("--without keep: leaving a part as it is cannot be forbidden.", hint="Leave keep out.")
    if "strategy" in options:
        find("strategies", options["strategy"])


def make_request(invocation: Invocation, source: TaskFile, options: dict[str, Any]) -> Request:
    from slimline.core.budget import Budget
    from slimline.core.request import Request

    limits = {k: options[k] for k in ("size_bytes", "download_bytes", "memory_bytes", "latency_ms", "macs", "max_drop", "minimize") if k in options}
    same = {
        k: options[k] for k in ("device", "methods", "without", "metric", "seed", "strategy", "seconds", "out", "resume", "force", "dry_run") if k in options
    }
    return Request(
        target=_target(options["targets"]),
        budget=Budget(**limits, batch=options["batch"], threads=options["threads"]),
        references_full=options.get("references") == "full",
        model_name=source.name,
        command=invocation.command,
        started=invocation.started,
        **same,
    )


def _target(names: tuple[str, ...]) -> str:
    from slimline.core.registry import find
    from slimline.core.request import Request

    chosen = list(dict.fromkeys(names)) or [Request().target]
    for name in chosen:
        target = find("targets", name)
        if not target.installed():
            raise TargetNotInstalled(f"The target {name} is not installed.", hint=f"Install it with: {target.install}")
    if len(chosen) > 1:
        raise UsageError(
            f"--target was given {len(chosen)} runtimes ({', '.join(chosen)}); one run compresses for one.",
            hint="Run the command once for each, with an --out of its own.",
        )
    return chosen[0]
