"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from slimline.errors import UsageError


def read_by(parser: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that has a function of ``core.budget`` read the option; it is imported when it is used."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        from slimline.core import budget

        if value is None:
            return None
        try:
            return budget.Drop.parse(value) if parser == "drop" else getattr(budget, f"parse_{parser}")(value)
        except UsageError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return read


def _quantity(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from slimline.core.budget import QUANTITIES

    if value is not None and value not in QUANTITIES:
        raise click.BadParameter(f"{value!r} is none of {', '.join(QUANTITIES)}.", ctx, param)
    return value


def names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in (value or "").split(",") if name.strip()))


def labels(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(text) for text in (value or "").split(",") if text.strip()))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} are no labels; write them like 1,5,7.", ctx, param) from error
    if value is not None and (not found or min(found) < 0):
        raise click.BadParameter(f"{value!r} are no labels; write them like 1,5,7.", ctx, param)
    return found


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that takes a model has."""
    for option in reversed(
        (
            click.argument("model", metavar="MODEL"),
            click.option("--weights", type=click.Path(path_type=Path), metavar="FILE.safetensors", help="A state dict to load into the model."),
            click.option("--data", type=click.Path(path_type=Path), metavar="FILE.py", help="Take data, metric, loss and example from another file."),
            click.option("--trust", is_flag=True, help="Open MODEL.pt2 or a SavedModel folder, which can run code."),
            click.option(
                "--metric",
                default="",
                metavar="NAME",
                help="A built-in metric instead of the task's own: top1, top5, precision, recall, f1, auroc, neg_mse, cosine.",
            ),
            click.option("--target", "targets", multiple=True, metavar="NAME", help="The runtime to compress for (the device's: onnxruntime)."),
            click.option(
                "--device",
                default="host",
                show_default=True,
                metavar="NAME",
                help="A device profile, or a file NAME.toml: sets target and limits; `slimline devices` lists them.",
            ),
            click.option("--methods", callback=names, metavar="A,B", help="Only these methods; `slimline methods` lists them."),
            click.option("--without", callback=names, metavar="A,B", help="Never these methods."),
            click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call when latency is measured."),
            click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The runtime's threads in every measurement."),
            click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True),
        )
    ):
        command = option(command)
    return command


def project_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the project file is."""
    return click.option("--file", type=click.Path(path_type=Path), default=Path("slimline.yaml"), show_default=True, metavar="FILE", help="The project file.")(
        command
    )


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Who helps."""
    for option in reversed(
        (
            click.option(
                "--workers",
                type=click.IntRange(min=1),
                metavar="N",
                help="Measure options and train candidates in N processes of this machine, which share its cores; the plan is the same.",
            ),
            click.option(
                "--ray",
                default="",
                metavar="ADDRESS",
                help="The same in a Ray cluster of yours, one worker for each machine or --workers N; `local` starts one here.",
            ),
        )
    ):
        command = option(command)
    return command


def mlflow_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the finished run is logged."""
    return click.option(
        "--mlflow",
        default="",
        metavar="URI",
        help="Log what was made at this MLflow tracking URI, as `slimline log DIR --to URI` does; `local`: at MLflow's own default.",
    )(command)


def budget_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--max-size", "size_bytes", metavar="SIZE", callback=read_by("bytes"), help="Bytes of the artefact: 300KB, 1.5MB; KB = 1,000, KiB = 1,024."
            ),
            click.option("--max-download", "download_bytes", metavar="SIZE", callback=read_by("bytes"), help="Bytes to download."),
            click.option(
                "--max-memory", "memory_bytes", metavar="SIZE", callback=read_by("bytes"), help="Weights as loaded plus the peak of live activations."
            ),
            click.option("--max-latency", "latency_ms", metavar="TIME", callback=read_by("milliseconds"), help="Median time of one call: 2ms, 800us."),
            click.option("--max-macs", "macs", metavar="COUNT", callback=read_by("count"), help="Multiply-adds per sample: 10M."),
            click.option(
                "--max-drop",
                metavar="DROP",
                callback=read_by("drop"),
                default="1%",
                show_default=True,
                help="Quality that may be lost: 1% or 0.01 in metric units, 2%rel of the original's.",
            ),
            click.option(
                "--minimize",
                metavar="QUANTITY",
                callback=_quantity,
                default=None,
                help="What to minimise within the limits: size, download, latency, memory, macs. [default: the device's, else latency]",
            ),
        )
    ):
        command = option(command)
    return command
