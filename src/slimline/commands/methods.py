"""``slimline methods``: what can be done to a model."""

from __future__ import annotations

import click

from slimline.commands._invocation import table


@click.command()
def command() -> int:
    """List the methods: what each is good for, at which stage, what it needs, and its paper."""
    from slimline.core.registry import registered

    rows = [(name, method.stage, ", ".join(method.needs), method.summary, method.reference) for name, method in registered("methods").items()]
    table(("method", "stage", "needs", "what it is good for", "source"), rows)
    return 0
