"""``slimline analyze``: where a model can be compressed."""

from __future__ import annotations

import json
from typing import Any

import click

from slimline.commands._invocation import Invocation, reserved_stdout
from slimline.commands._options import model_options
from slimline.commands._request import load_task, make_request


@click.command()
@model_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def command(invocation: Invocation, /, as_json: bool, **options: Any) -> int:
    """Show where MODEL can be compressed, what is offered there, and what cannot be touched and why."""
    with reserved_stdout(as_json) as stdout:
        source = load_task(options)
        request = make_request(invocation, source, options)
        from slimline.job import analyze_request

        found = analyze_request(source, request)
    click.echo(json.dumps({"lines": found.splitlines()}, indent=2) if as_json else found, file=stdout)
    return 0
