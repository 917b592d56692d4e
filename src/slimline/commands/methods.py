"""``slimline methods``: what can be done to a model."""

from __future__ import annotations

import click

from slimline.commands._invocation import table


@click.command()
def command() -> int:
    """List the methods: what each does, at which stage, and its paper."""
    from slimline.core.registry import registered

    rows = [(name, method.stage, method.summary, method.reference) for name, method in registered("methods").items()]
    table(("method", "stage", "what it does", "source"), rows)
    return 0
