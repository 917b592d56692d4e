"""``slimline devices``: what models are compressed for."""

from __future__ import annotations

from pathlib import Path

import click

from slimline.commands._invocation import table
from slimline.core.whole import write_whole


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> int | None:
    """List device profiles; show one; fill its latency table from measurements on it."""
    return ctx.invoke(list_devices) if ctx.invoked_subcommand is None else None


@command.command("list")
def list_devices() -> int:
    """List the profiles that are shipped."""
    from slimline.core.device import Device
    from slimline.report.sentence import bytes_text

    rows = []
    for name in Device.known():
        device = Device.load(name)
        limits = ", ".join(f"{what} {bytes_text(v)}" for what, v in (("size", device.size_bytes), ("memory", device.memory_bytes)) if v is not None)
        latency = "measured on the spot" if not device.targets else "estimated" if device.latency is not None else "no table"
        rows.append((name, device.target, limits, latency, device.title))
    table(("device", "target", "limits", "latency", "what it is"), rows)
    return 0


@command.command()
@click.argument("name")
def show(name: str) -> int:
    """Print a profile with the source of each number; NAME may be a file."""
    from slimline.core.device import Device

    click.echo(Device.load(name).toml(), nl=False)
    return 0


@command.command()
@click.argument("name")
@click.option("--run", required=True, metavar="CMD", help="Reads a .tflite file from its standard input, runs it on the device, prints milliseconds last.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.toml", help="Where the profile with the table goes. [default: NAME.toml here]")
def calibrate(name: str, run: str, out: Path | None) -> int:
    """Measure small models on a device through CMD and write its profile with a latency table.

    \b
    slimline devices calibrate raspberry-pi-5 --run "ssh pi python3 device_benchmark.py"
    slimline compress task.py --device ./raspberry-pi-5.toml
    """
    import datetime

    from slimline.core.device import Device
    from slimline.targets._device_calibration import ask, calibrate
    from slimline.targets.litert import LiteRT

    device = Device.load(name)
    LiteRT.require()
    made = calibrate(lambda payload: ask(run, payload), f"calibrated on {datetime.date.today().isoformat()} with `{run}`")
    file = out or Path(f"{device.name}.toml")
    write_whole(file, device.model_copy(update={"latency": made}).toml().encode())
    table(
        ("operation", "executes", "us per call", "ns per multiply-add or value"),
        [(r.operation, r.executes, f"{r.call_us:.3g}", f"{r.nanoseconds:.3g}") for r in made.rates],
    )
    click.echo(f"A whole network that the rates were not fitted to: {made.check_estimated_ms:.3g} ms estimated, {made.check_measured_ms:.3g} ms measured.")
    click.echo(f"Use it with: slimline compress ... --device {file if '/' in str(file) else f'./{file}'}")
    return 0
